"""Masks as annotation files hold them, polygons and runs, and as they are kept: COCO's compressed runs.

pycocotools decodes and draws without a look at what it is given: coordinates far away or that are no numbers end the
interpreter. So everything is looked at here before.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

_MOST_CHARACTERS = 7  # of one number in compressed runs: 35 bits, more than any picture has pixels


def compress(segmentation: Any, size: tuple[int, int]) -> tuple[bytes, bool]:
    """A mask of an annotation as compressed runs, empty where there is none.

    Args:
        segmentation: polygons, or runs with their size, compressed or not.
        size: rows and columns of the picture.

    Returns:
        The runs, and whether a part was left out that is no polygon.

    Raises:
        ValueError: it is none of these, leaves its picture far behind, or is of another size; the text continues
            "annotation 1 of FILE ...".
    """
    if isinstance(segmentation, dict):
        return _of_runs(segmentation, size), False
    if not segmentation and (segmentation is None or isinstance(segmentation, list | str)):
        return b"", False
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise ValueError("has a segmentation that is neither a list of polygons nor runs (size and counts)")
    parts = [part for part in segmentation if len(part) >= 6 and len(part) % 2 == 0]
    for part in parts:
        _check_polygon(part, size)
    mask = rle.merge(rle.frPyObjects(parts, *size))["counts"] if parts else b""
    return mask, len(parts) < len(segmentation)


def _check_polygon(part: list[Any], size: tuple[int, int]) -> None:
    for place, number in enumerate(part):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(f"has polygons that are not numbers ({number!r:.40})")
        length = size[1 - place % 2]
        if not -length <= number <= 2 * length:  # nor a NaN
            raise ValueError(
                f"has a polygon's corner at {number!r:.40}, far outside its picture of {size[0]} rows and {size[1]} "
                f"columns"
            )


def _of_runs(segmentation: dict[str, Any], size: tuple[int, int]) -> bytes:
    counts, own = segmentation.get("counts"), segmentation.get("size")
    if own != list(size):
        raise ValueError(f"has a mask of {own!r:.40} for a picture of {list(size)}, rows and columns")
    if isinstance(counts, str | bytes):
        counts = expand_runs(counts)
    if not isinstance(counts, list) or not all(type(number) is int for number in counts):
        raise ValueError("has runs that are neither a list of whole numbers nor text")
    if sum(counts) != size[0] * size[1] or min(counts, default=0) < 0:
        raise ValueError(f"has runs of {sum(counts):.6g} pixels for a picture of {size[0] * size[1]}")
    return rle.frPyObjects({"size": list(size), "counts": counts}, *size)["counts"]


def expand_runs(counts: str | bytes) -> list[int]:
    """Lengths of the runs of COCO's compressed form.

    Characters from "0" on hold five bits of a number, lowest first, and one bit that says whether more follow; from the
    fourth number on it is the difference to the last but one.

    Raises:
        ValueError: a number does not end, or is too long for any picture.
    """
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    lengths: list[int] = []
    place = 0
    while place < len(data):
        number, first, more = 0, place, True
        while more:
            if place == len(data) or place - first == _MOST_CHARACTERS:
                raise ValueError(f"has runs that cannot be decoded (character {first})")
            bits = data[place] - 48
            number |= (bits & 31) << 5 * (place - first)
            place += 1
            more = bool(bits & 32)
        if bits & 16:
            number -= 1 << 5 * (place - first)
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def count_pixels(mask: bytes, size: tuple[int, int]) -> int:
    """Of compressed runs."""
    return int(rle.area({"size": size, "counts": mask})) if mask else 0


def decode_mask(mask: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (rows, columns) from compressed runs."""
    return rle.decode({"size": list(size), "counts": mask})


def decode_masks(masks: list[bytes], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 (rows, columns, n), in Fortran order."""
    return rle.decode([{"size": list(size), "counts": mask} for mask in masks])
