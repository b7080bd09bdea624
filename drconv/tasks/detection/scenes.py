"""A small data set in COCO's format that needs no download: handwritten digits on textured backgrounds.

The digits are real (UCI, 8x8 pixels, enlarged). They overlap, and heaps of small ones are crowds. Pictures and
annotations are written once, below ``cache_folder()``, so that everything that reads COCO reads these too.
"""

import json
import os
import shutil
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as rle

from drconv.files import one_at_a_time, temporary_beside
from drconv.tasks.detection.index import cache_folder

COUNTS = {"train": 600, "val": 60}
SHAPES = ((96, 128), (128, 96), (112, 112))  # rows and columns
OBJECTS = (2, 4)  # fewest and most digits of a scene
SIDES = (28, 52)  # pixels of a digit
CROWD = 0.15  # share of the scenes with a crowd
_VERSION = 1

Pixels = NDArray[np.uint8]


def scenes_folder() -> Path:
    """The data set's folder, in the layout of COCO 2017; it is written on first use."""
    folder = cache_folder() / f"scenes-{_VERSION}"
    with one_at_a_time(folder.with_suffix(".lock")):
        if not folder.exists():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    """Writes below a name of this process alone, then renames; where another process was faster, its folder stays."""
    made = temporary_beside(folder)
    try:
        for number, split in enumerate(COUNTS):
            write_scenes(made, split, seed=number)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)  # still there after a failure, or beside a faster process's


def write_scenes(root: Path, split: str, seed: int) -> None:
    """Writes ``<split>2017/`` and its annotations below a folder. Every fifth digit is kept for val."""
    with np.load(str(files("drconv.data") / "digits.npz")) as stored:
        pictures, labels = stored["pictures"], stored["labels"]
    is_val = np.arange(len(labels)) % 5 == 0
    kept = is_val if split == "val" else ~is_val
    source = _Digits(pictures[kept], labels[kept], np.random.default_rng(seed))
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(1, COUNTS[split] + 1):
        picture, objects = source.scene()
        name = f"{number:06}.jpg"
        Image.fromarray(picture).save(folder / name, quality=95)
        images.append({"id": number, "file_name": name, "height": picture.shape[0], "width": picture.shape[1]})
        annotations += [{**record, "image_id": number} for record in objects]
    for number, record in enumerate(annotations, 1):
        record["id"] = number
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


@dataclass
class _Digits:
    pictures: NDArray[Any]
    labels: NDArray[np.int64]
    random: np.random.Generator

    def scene(self) -> tuple[Pixels, list[dict[str, Any]]]:
        """A picture (rows, columns, 3) and its objects; later digits hide earlier ones."""
        random = self.random
        rows, columns = SHAPES[random.integers(len(SHAPES))]
        canvas = self.background(rows, columns)
        shapes: list[tuple[int, bool, NDArray[np.bool_]]] = []
        if random.random() < CROWD:
            digit, shape = self.crowd(canvas)
            shapes.append((digit, True, shape))
        for _ in range(random.integers(OBJECTS[0], OBJECTS[1] + 1)):
            digit, shape = self.draw(canvas, int(random.integers(*SIDES)), (0, 0), (rows, columns), self.pick())
            shapes = [(other, is_crowd, seen & ~shape) for other, is_crowd, seen in shapes]
            shapes.append((digit, False, shape))
        visible = [_record(*one) for one in shapes if one[2].sum() >= 40]
        return canvas.round().clip(0, 255).astype(np.uint8), visible

    def background(self, rows: int, columns: int) -> NDArray[np.float64]:
        """Two layers of coloured noise, coarse and fine, in the darker half of the range."""
        random = self.random
        canvas = np.zeros((rows, columns, 3))
        for cells, strength in ((5, 70), (24, 25)):
            noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
            canvas += np.asarray(Image.fromarray(noise).resize((columns, rows), Image.Resampling.BICUBIC)) * (
                strength / 255
            )
        return canvas + random.uniform(0, 40, 3)

    def pick(self) -> int:
        return int(self.random.integers(len(self.labels)))

    def crowd(self, canvas: NDArray[np.float64]) -> tuple[int, NDArray[np.bool_]]:
        """A heap of small digits of one class."""
        first = self.pick()
        digit = int(self.labels[first])
        same = np.flatnonzero(self.labels == digit)
        top, left = (int(self.random.integers(0, side - 40)) for side in canvas.shape[:2])
        union = np.zeros(canvas.shape[:2], dtype=bool)
        for _ in range(10):
            union |= self.draw(canvas, 14, (top, left), (top + 40, left + 40), int(self.random.choice(same)))[1]
        return digit, union

    def draw(
        self, canvas: NDArray[np.float64], side: int, start: tuple[int, int], end: tuple[int, int], position: int
    ) -> tuple[int, NDArray[np.bool_]]:
        """Draws a digit in a bright colour somewhere in a window; returns its class and its pixels."""
        random = self.random
        levels = Image.fromarray((self.pictures[position].reshape(8, 8) * (255 / 16)).astype(np.uint8))
        ink = np.asarray(levels.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        top, left = (int(random.integers(a, b - side + 1)) for a, b in zip(start, end, strict=True))
        window = canvas[top : top + side, left : left + side]
        alpha = np.clip(ink * 1.6 - 0.3, 0, 1)[..., None]
        window[:] = window * (1 - alpha) + alpha * random.uniform(150, 255, 3)
        shape = np.zeros(canvas.shape[:2], dtype=bool)
        shape[top : top + side, left : left + side] = alpha[..., 0] >= 0.5
        return int(self.labels[position]), shape


def _record(digit: int, is_crowd: bool, shape: NDArray[np.bool_]) -> dict[str, Any]:
    """As COCO has them: crowds as plain runs, others as compressed ones."""
    runs = rle.encode(np.asfortranarray(shape, dtype=np.uint8))
    box, area = rle.toBbox(runs).tolist(), int(rle.area(runs))
    counts: str | list[int] = runs["counts"].decode()
    if is_crowd:
        flat = shape.flatten(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        lengths = np.diff([0, *edges, flat.size]).tolist()
        counts = [0, *lengths] if flat[0] else lengths
    segmentation = {"size": list(shape.shape), "counts": counts}
    return {
        "category_id": digit + 1,
        "bbox": box,
        "area": area,
        "iscrowd": int(is_crowd),
        "segmentation": segmentation,
    }
