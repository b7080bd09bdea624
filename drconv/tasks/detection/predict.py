"""Any folder of pictures through a trained detector: pictures with boxes, masks and scores, and the results as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from torch import Tensor, nn

from drconv.config import Config
from drconv.data import normalise
from drconv.data.decode import read_picture
from drconv.data.index import PICTURE_ENDINGS
from drconv.errors import DataError
from drconv.files import replace_file
from drconv.tasks.detection.average_precision import Found
from drconv.tasks.detection.task import as_found
from drconv.tasks.detection.transforms import Change, change_picture, fit

COLOURS = ((230, 60, 60), (60, 160, 240), (70, 200, 90), (240, 180, 40), (190, 90, 230), (40, 200, 200))
OPACITY = 0.45


def pictures_in(place: Path) -> list[Path]:
    """A picture, or those of a folder, by name.

    Raises:
        DataError: there is none.
    """
    if place.is_file():
        return [place]
    found = sorted(path for path in place.glob("*") if path.suffix.lower() in PICTURE_ENDINGS)
    if not found:
        raise DataError(f"images={place} holds no picture ({', '.join(PICTURE_ENDINGS)})")
    return found


@torch.inference_mode()
def predict(
    network: nn.Module,
    config: Config,
    names: Sequence[str],
    images: Sequence[Path],
    out: Path,
    score: float = 0.5,
) -> tuple[list[Path], list[str]]:
    """Writes a PNG for every picture, and ``results.json``, below a folder.

    The results are the official records (``image_id`` is the file's name) of every detection, the pictures show those
    from a score on.

    Args:
        network: a detector with its weights.
        config: of its run.
        names: of the classes, label 1 first.
        images: picture files.
        out: folder, made if it is missing.
        score: lowest score that is drawn.

    Returns:
        The pictures that were written, and of each that does not decode a line that says so.
    """
    out.mkdir(parents=True, exist_ok=True)
    network.eval()
    records, written, broken = [], [], []
    for path in images:
        try:
            picture = read_picture(path, max_pixels=config.data.max_pixels, exif=config.data.coco.exif)
        except DataError as error:
            broken.append(str(error).partition("; repair")[0])
            continue
        found = detect(network, config, picture)
        records += as_records(found, path.name, (picture.shape[1], picture.shape[2]), network.category_ids.tolist())  # type: ignore[union-attr,operator]
        written.append(out / f"{path.stem}.png")
        draw(picture, found, names, score).save(written[-1])
    replace_file(out / "results.json", json.dumps(records))
    return written, broken


def detect(network: nn.Module, config: Config, picture: Tensor) -> Found:
    """The detections in a picture, uint8 (3, H, W), as evaluation finds them."""
    images = as_input(network, config, picture)
    size = (images.shape[2], images.shape[3])
    (detections,) = network(images, [size])
    return as_found(detections, 0, (picture.shape[1], picture.shape[2]), size)


def as_input(network: nn.Module, config: Config, picture: Tensor) -> Tensor:
    """A picture, uint8 (3, H, W), resized and normalised as in evaluation: (1, 3, H', W') on the network's device."""
    coco = config.data.coco
    change = Change(fit((picture.shape[1], picture.shape[2]), coco.sizes[-1], coco.max_size))
    pixels = change_picture(picture, change)[None].to(next(network.parameters()).device)
    return normalise(pixels, config.data, config.runtime.channels_last)


def as_records(found: Found, name: str, size: tuple[int, int], category_ids: list[int]) -> list[dict]:
    """Official results with box and, where there is one, mask; sorted by score as the detector gives them."""
    records = []
    for i, (x1, y1, x2, y2) in enumerate(found.boxes.tolist()):
        record = {"image_id": name, "category_id": category_ids[int(found.labels[i]) - 1]}
        record |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(found.scores[i])}
        if found.masks is not None:
            record["segmentation"] = {"size": list(size), "counts": found.masks[i].decode()}
        records.append(record)
    return records


def draw(picture: Tensor, found: Found, names: Sequence[str], score: float) -> Image.Image:
    """The picture, uint8 (3, H, W), with what was found, the surest on top."""
    canvas = picture.permute(1, 2, 0).numpy().astype(np.float32)
    size = (picture.shape[1], picture.shape[2])
    shown = [i for i in np.argsort(found.scores) if found.scores[i] >= score]
    for i in shown:
        if found.masks is not None:
            inside = rle.decode({"size": list(size), "counts": found.masks[i]}).astype(bool)
            canvas[inside] = (1 - OPACITY) * canvas[inside] + OPACITY * np.array(_colour(found, i))
    image = Image.fromarray(canvas.round().astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for i in shown:
        box = tuple(found.boxes[i].tolist())
        text = f"{names[int(found.labels[i]) - 1]} {found.scores[i]:.2f}"
        pen.rectangle(box, outline=_colour(found, i), width=max(1, round(max(size) / 320)))
        place = pen.textbbox((box[0] + 2, max(0.0, box[1] - 11)), text)
        pen.rectangle(place, fill=_colour(found, i))
        pen.text(place[:2], text, fill=(255, 255, 255))
    return image


def _colour(found: Found, i: int) -> tuple[int, int, int]:
    return COLOURS[int(found.labels[i]) % len(COLOURS)]
