"""Small data sets in COCO's format, written by the tests or embedded."""

import functools
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

from PIL import Image

from drconv.config import CocoConfig, DataConfig
from drconv.tasks.detection import scenes


@functools.cache
def scenes_root() -> Path:
    """Fewer of the embedded scenes, written once for all tests of a process."""
    folder = tempfile.mkdtemp(prefix="drconv-test-")
    with patch.dict(os.environ, DRCONV_CACHE=folder), patch.dict(scenes.COUNTS, train=12, val=12):
        return scenes.scenes_folder()


def write_coco(
    root: Path, pictures: list[Image.Image], annotations: list[dict[str, Any]], **options: Any
) -> DataConfig:
    """A folder with one picture after the other, ids from 1, in both splits; annotations have ids from 0."""
    (root / "annotations").mkdir(parents=True)
    images = []
    for number, picture in enumerate(pictures, 1):
        name = f"{number}.{'png' if picture.mode in ('P', 'RGBA') else 'jpg'}"
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for split in ("train2017", "val2017"):
            (root / split).mkdir(exist_ok=True)
            picture.save(root / split / name, exif=picture.getexif())
    records = [{"id": number, **one} for number, one in enumerate(annotations)]
    content = {"images": images, "annotations": records, "categories": [{"id": 4, "name": "cat"}]}
    for split in ("train", "val"):
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return DataConfig(name="coco", root=str(root), coco=CocoConfig(sizes=[32], max_size=48, **options))


def box(picture: int, x: float, y: float, width: float, height: float, **more: Any) -> dict[str, Any]:
    """An annotation whose polygon is its box."""
    polygon = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    record = {"image_id": picture, "category_id": 4, "bbox": [x, y, width, height], "segmentation": polygon}
    return record | {"area": width * height, "iscrowd": 0} | more


def grey(columns: int, rows: int, mode: str = "RGB") -> Image.Image:
    return Image.new("L", (columns, rows), 90).convert(mode)
