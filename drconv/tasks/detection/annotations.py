"""COCO's annotation files, read with distrust: every form that masks come in, and what real files get wrong.

What can be understood is understood and counted, what cannot is refused with annotation and file. Annotations are never
looked up by their id: those of the 2014 lists repeat, and an id of 0 is "no match" to pycocotools.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from drconv.errors import DataError

Record = dict[str, Any]
NAMED = 3  # annotations that a finding names


@dataclass
class Picture:
    """A picture of a file, in the file's words.

    Attributes:
        key: its id.
        name: file name, relative to the folder of pictures.
        size: rows and columns.
    """

    key: int | str
    name: str
    size: tuple[int, int]


@dataclass
class Annotation:
    """One object.

    Attributes:
        picture: position of its picture.
        label: from 1, in the order of the categories' ids.
        box: x, y, width, height as in the file.
        area: of the mask, or of the box where there is none.
        is_crowd: whether it marks a group, which training leaves out.
        is_trained: whether its box has an extent within the picture, and its mask pixels.
        mask: compressed runs of the picture's size; empty where there is none.
    """

    picture: int
    label: int
    box: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    is_trained: bool
    mask: bytes


@dataclass
class Findings:
    """What was unusual in a file, with the ids of the first few annotations."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, example: object) -> None:
        self.counts[what] += 1
        named = self.examples.setdefault(what, [])
        if len(named) < NAMED:
            named.append(str(example))

    def lines(self) -> list[str]:
        """One line for each kind."""
        return [f"{number} {what} ({', '.join(self.examples[what])})" for what, number in self.counts.items()]


@dataclass
class Contents:
    """A file in memory; categories as (id, name), sorted by id."""

    categories: list[tuple[int, str]]
    pictures: list[Picture]
    annotations: list[Annotation]
    findings: Findings


def read_annotations(path: Path) -> Contents:
    """Reads a file of instance annotations.

    Raises:
        DataError: it is no such file, contradicts itself, or most boxes leave their pictures.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        records = {key: content[key] for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no COCO annotation file ({type(error).__name__}: {error})") from None
    reader = _Reader(path)
    categories = sorted((int(record["id"]), str(record["name"])) for record in records["categories"])
    labels = {key: label for label, (key, _) in enumerate(categories, 1)}
    if len(labels) != len(categories):
        raise DataError(f"{path} has two categories of one id; give every category an id of its own")
    pictures = [reader.picture(record) for record in records["images"]]
    positions = {picture.key: position for position, picture in enumerate(pictures)}
    if len(positions) != len(pictures):
        raise DataError(f"{path} lists {len(pictures) - len(positions)} pictures twice; every id must be its own")
    annotations = [reader.annotation(record, pictures, positions, labels) for record in records["annotations"]]
    reader.check_boxes(annotations, pictures)
    reader.count_repeated(records["annotations"])
    return Contents(categories, pictures, annotations, reader.findings)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.findings = Findings()

    def refuse(self, key: object, reason: str) -> NoReturn:
        raise DataError(f"annotation {key} of {self.path} {reason}; correct or remove it")

    def picture(self, record: Record) -> Picture:
        try:
            size = int(record["height"]), int(record["width"])
            picture = Picture(record["id"], str(record["file_name"]), size)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"picture {record} of {self.path} lacks id, file_name, height or width ({error})") from None
        if min(size) < 1:
            raise DataError(f"picture {picture.key} of {self.path} has {size[0]} rows and {size[1]} columns")
        return picture

    def annotation(
        self, record: Record, pictures: list[Picture], positions: dict[int | str, int], labels: dict[int, int]
    ) -> Annotation:
        key = record.get("id")
        if record.get("image_id") not in positions:
            self.refuse(key, f"belongs to picture {record.get('image_id')!r}, which is not listed")
        if record.get("category_id") not in labels:
            self.refuse(key, f"has category {record.get('category_id')!r}, which is not among the categories")
        position = positions[record["image_id"]]
        size = pictures[position].size
        box = self.box(record)
        mask = self.mask(record, size)
        pixels = int(rle.area({"size": size, "counts": mask})) if mask else 0
        area = record.get("area")
        if area is None or not math.isfinite(area):
            self.findings.add("annotations without area, which is taken from mask or box", key)
            area = pixels if mask else max(0.0, box[2]) * max(0.0, box[3])
        is_crowd = bool(record.get("iscrowd", 0))
        is_trained = not is_crowd and self.has_extent(key, box, size)
        if is_trained and mask and not pixels:
            self.findings.add("masks without a pixel, which are not trained on", key)
            is_trained = False
        return Annotation(position, labels[record["category_id"]], box, float(area), is_crowd, is_trained, mask)

    def box(self, record: Record) -> tuple[float, float, float, float]:
        box = record.get("bbox")
        try:
            x, y, width, height = (float(number) for number in box)  # type: ignore[union-attr]
        except (TypeError, ValueError):
            self.refuse(record.get("id"), f"has the box {box!r}, which is not x, y, width, height")
        if not all(map(math.isfinite, (x, y, width, height))):
            self.refuse(record.get("id"), f"has the box {box!r}, which is not finite")
        return x, y, width, height

    def has_extent(self, key: object, box: tuple[float, ...], size: tuple[int, int]) -> bool:
        x1, y1, x2, y2 = clip_box(box, size)
        if x2 > x1 and y2 > y1:
            return True
        self.findings.add("boxes without extent in their picture, which are not trained on", key)
        return False

    def mask(self, record: Record, size: tuple[int, int]) -> bytes:
        """The mask as compressed runs; empty where there is none."""
        segmentation = record.get("segmentation")
        key = record.get("id")
        if isinstance(segmentation, dict):
            return self.runs(key, segmentation, size)
        if not segmentation:
            return b""
        if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
            self.refuse(key, "has a segmentation that is neither a list of polygons nor runs (size and counts)")
        parts = [part for part in segmentation if len(part) >= 6 and len(part) % 2 == 0]
        if len(parts) < len(segmentation):
            self.findings.add("polygons of fewer than three corners, or half of one, which are left out", key)
        if not parts:
            return b""
        try:
            return rle.merge(rle.frPyObjects(parts, *size))["counts"]
        except (TypeError, ValueError) as error:
            self.refuse(key, f"has polygons that are not numbers ({error})")

    def runs(self, key: object, segmentation: Record, size: tuple[int, int]) -> bytes:
        counts, own = segmentation.get("counts"), segmentation.get("size")
        if list(own or []) != list(size):
            self.refuse(key, f"has a mask of {own} for a picture of {list(size)}, rows and columns")
        try:
            lengths = counts if isinstance(counts, list) else expand_runs(counts)  # type: ignore[arg-type]
            total, shortest = sum(lengths), min(lengths, default=0)
        except (TypeError, AttributeError, IndexError) as error:
            self.refuse(key, f"has runs that cannot be decoded ({type(error).__name__}: {error})")
        if total != size[0] * size[1] or shortest < 0:
            self.refuse(key, f"has runs of {total} pixels for a picture of {size[0] * size[1]}")
        return rle.frPyObjects({"size": list(size), "counts": lengths}, *size)["counts"]

    def check_boxes(self, annotations: list[Annotation], pictures: list[Picture]) -> None:
        """Corners in place of width and height leave the pictures; a few boxes may."""
        outside = 0
        for annotation in annotations:
            x, y, width, height = annotation.box
            rows, columns = pictures[annotation.picture].size
            outside += x + width > columns + 1 or y + height > rows + 1
        if outside * 2 > len(annotations):
            raise DataError(
                f"{outside} of {len(annotations)} boxes of {self.path} leave their pictures: are they corners, x1, y1, "
                f"x2, y2? COCO's are x, y, width, height"
            )

    def count_repeated(self, records: list[Record]) -> None:
        for key, number in Counter(str(record.get("id")) for record in records).items():
            if number > 1:
                self.findings.add("ids that several annotations share, which is harmless here", key)


def expand_runs(counts: str | bytes) -> list[int]:
    """Lengths of the runs of COCO's compressed form, which pycocotools decodes without a check.

    Characters from "0" on hold five bits of a number, lowest first, and one bit that says whether more follow; from the
    fourth number on it is the difference to the last but one.
    """
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    lengths: list[int] = []
    place = 0
    while place < len(data):
        number = shift = 0
        more = True
        while more:
            bits = data[place] - 48
            place += 1
            number |= (bits & 31) << shift
            shift += 5
            more = bool(bits & 32)
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def clip_box(box: tuple[float, ...], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, width, height as corners x1, y1, x2, y2 within a picture of so many rows and columns."""
    x, y, width, height = box
    rows, columns = size
    return max(0.0, x), max(0.0, y), min(float(columns), x + width), min(float(rows), y + height)


def decode_mask(mask: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (rows, columns) from compressed runs."""
    return rle.decode({"size": list(size), "counts": mask})


def decode_masks(masks: list[bytes], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (rows, columns, n), in Fortran order."""
    return rle.decode([{"size": list(size), "counts": mask} for mask in masks])
