"""COCO's annotation files, read with distrust: every form that masks come in, and what real files get wrong.

What can be understood is understood and counted, what cannot is refused with annotation and file. Annotations are never
looked up by their id: those of the 2014 lists repeat, and an id of 0 is "no match" to pycocotools.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeGuard

from drconv.errors import DataError
from drconv.tasks.detection.runs import compress, count_pixels

Record = dict[str, Any]
NAMED = 3  # annotations that a finding names
MOST_PIXELS = 2**30  # of a picture


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
        records = {key: _records(content, key) for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} is no COCO annotation file ({type(error).__name__}: {error})") from None
    reader = _Reader(path)
    categories = reader.categories(records["categories"])
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


def _records(content: Any, key: str) -> list[Record]:
    records = content.get(key) if isinstance(content, dict) else None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"{key} is no list of records")
    return records


def _is_key(value: object) -> TypeGuard[int | str]:
    """Ids of pictures are whole numbers or texts; True is neither."""
    return type(value) in (int, str)


def _is_number(value: Any) -> bool:
    """A finite one that fits a float."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # which no NaN is


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.findings = Findings()

    def refuse(self, key: object, reason: str) -> NoReturn:
        raise DataError(f"annotation {key} of {self.path} {reason}; correct or remove it")

    def categories(self, records: list[Record]) -> list[tuple[int, str]]:
        """Id and name of each, sorted by id."""
        for record in records:
            if type(record.get("id")) is not int or not isinstance(record.get("name"), str):
                raise DataError(f"category {record!r:.80} of {self.path} lacks a whole number as id, or a name")
        return sorted((record["id"], record["name"]) for record in records)

    def picture(self, record: Record) -> Picture:
        key, name, height, width = (record.get(name) for name in ("id", "file_name", "height", "width"))
        try:
            if not _is_key(key):
                raise ValueError("the id is no whole number or text")
            if not isinstance(name, str) or not os.fsencode(name):
                raise ValueError("there is no file name")
            if os.path.isabs(name) or ".." in name.split("/"):
                raise ValueError("its file name leads out of the folder of pictures")
            if type(height) is not int or type(width) is not int or min(height, width) < 1:
                raise ValueError("height or width is no whole number above 0")
            if height * width > MOST_PIXELS:
                raise ValueError(f"it has more than {MOST_PIXELS} pixels")
        except ValueError as error:
            raise DataError(f"picture {record!r:.120} of {self.path} cannot be used: {error}") from None
        return Picture(key, name, (height, width))

    def annotation(
        self, record: Record, pictures: list[Picture], positions: dict[int | str, int], labels: dict[int, int]
    ) -> Annotation:
        key, picture, category = record.get("id"), record.get("image_id"), record.get("category_id")
        if not _is_key(picture) or picture not in positions:
            self.refuse(key, f"belongs to picture {picture!r:.40}, which is not listed")
        if type(category) is not int or category not in labels:
            self.refuse(key, f"has category {category!r:.40}, which is not among the categories")
        crowd = record.get("iscrowd") or 0
        if crowd not in (0, 1):
            self.refuse(key, f"has iscrowd {crowd!r:.40}, which is neither 0 nor 1")
        position = positions[picture]
        size = pictures[position].size
        box = self.box(record)
        mask = self.mask(record, size)
        pixels = count_pixels(mask, size)
        area = self.area(record, box, pixels if mask else None)
        is_trained = not crowd and self.has_extent(key, box, size)
        if is_trained and mask and not pixels:
            self.findings.add("masks without a pixel, which are not trained on", key)
            is_trained = False
        return Annotation(position, labels[category], box, area, bool(crowd), is_trained, mask)

    def box(self, record: Record) -> tuple[float, float, float, float]:
        box = record.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            self.refuse(
                record.get("id"), f"has the box {box!r:.80}, which is not x, y, width, height in finite numbers"
            )
        x, y, width, height = map(float, box)
        return x, y, width, height

    def has_extent(self, key: object, box: tuple[float, ...], size: tuple[int, int]) -> bool:
        x1, y1, x2, y2 = clip_box(box, size)
        if x2 > x1 and y2 > y1:
            return True
        self.findings.add("boxes without extent in their picture, which are not trained on", key)
        return False

    def mask(self, record: Record, size: tuple[int, int]) -> bytes:
        """The mask as compressed runs; empty where there is none."""
        try:
            mask, has_other_parts = compress(record.get("segmentation"), size)
        except ValueError as error:
            self.refuse(record.get("id"), str(error))
        if has_other_parts:
            self.findings.add(
                "polygons of fewer than three corners, or half of one, which are left out", record.get("id")
            )
        return mask

    def area(self, record: Record, box: tuple[float, ...], mask_pixels: int | None) -> float:
        area = record.get("area")
        if area is not None and not _is_number(area) and area == area:
            self.refuse(record.get("id"), f"has the area {area!r:.40}, which is no number")
        if area is not None and area >= 0:
            return float(area)
        self.findings.add("annotations without area, which is taken from mask or box", record.get("id"))
        return float(mask_pixels if mask_pixels is not None else max(0.0, box[2]) * max(0.0, box[3]))

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


def clip_box(box: tuple[float, ...], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """x, y, width, height as corners x1, y1, x2, y2 within a picture of so many rows and columns."""
    x, y, width, height = box
    rows, columns = size
    return max(0.0, x), max(0.0, y), min(float(columns), x + width), min(float(rows), y + height)
