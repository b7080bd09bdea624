"""Faces cut by five points (eyes, nose, corners of the mouth) onto the published template.

A similarity (rotation, one scale, shift; no mirror) is fitted in closed form (Umeyama, 1991) and the picture resampled
with bilinear interpolation and black outside. Pixels are counted from 0, as in the crops of MS1M-V2.
"""

import csv
import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from drconv.data.decode import read_picture
from drconv.errors import DataError
from drconv.files import MAX_JSON, read_bounded, replacing

# Left eye in the picture, right eye, nose, left and right corner of the mouth, in 112x112; 112x96 has x - 8.
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIZES = {(112, 112): 0.0, (112, 96): 8.0}  # rows and columns, what is taken from the template's x
MOST_RESIDUAL = 12.0  # pixels of the template, root mean square
SCALES = (0.02, 20.0)  # template pixels for one of the picture
FARTHEST = 1e6  # pixels: squares of more have no digits left for the rest
Points = NDArray[np.float64]


@dataclass(frozen=True)
class BadRow:
    """A row of a landmark file that gives no crop."""

    name: str
    reason: str


def template(size: tuple[int, int]) -> Points:
    """The five points (5, 2) for rows and columns of a crop."""
    return TEMPLATE - [SIZES[size], 0]


def similarity(source: Points, target: Points) -> NDArray[np.float64]:
    """The 2x3 matrix A that minimises the sum of |A (x, 1) - y|^2 over similarities without a mirror.

    Raises:
        ValueError: points are not finite, all equal, or do not resemble the target.
    """
    if not (np.abs(source) < FARTHEST).all():
        raise ValueError(f"a point is not finite, or beyond {FARTHEST:.0e}")
    from_mean, to_mean = source.mean(0), target.mean(0)
    a, b = source - from_mean, target - to_mean
    spread = np.square(a).sum()
    if spread < 1e-6:
        raise ValueError("the points are equal")
    # In two dimensions: the real and imaginary part of the least-squares factor from a to b as complex numbers.
    cosine, sine = (a * b).sum() / spread, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / spread
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    scale = math.hypot(cosine, sine)
    residual = math.sqrt(np.square(a @ matrix.T - b).sum(1).mean())
    if not SCALES[0] <= scale <= SCALES[1]:
        raise ValueError(f"the face would be scaled by {scale:.3g}")
    if residual > MOST_RESIDUAL:
        raise ValueError(f"the points miss the template by {residual:.1f} pixels; their order is eyes, nose, mouth")
    return np.column_stack([matrix, to_mean - matrix @ from_mean])


def align(picture: Image.Image, points: Points, size: tuple[int, int]) -> Image.Image:
    """The crop of a face, ``size`` in rows and columns.

    Raises:
        ValueError: as ``similarity``.
    """
    forward = np.vstack([similarity(points, template(size)), [0, 0, 1]])
    back = np.linalg.inv(forward)[:2]
    back[:, 2] += back[:, :2] @ [-0.5, -0.5] + 0.5  # Pillow samples at pixel centres, x + 0.5
    data = tuple(back.ravel())
    rows, columns = size
    return picture.convert("RGB").transform(
        (columns, rows), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=(0, 0, 0)
    )


def align_folder(folder: Path, landmarks: Path, target: Path, size: tuple[int, int]) -> tuple[int, list[BadRow]]:
    """Aligns every picture of a landmark file and writes it as JPEG (quality 95) under the same name.

    Rows are ``path, x1, y1, ..., x5, y5`` with commas, tabs or blanks between them; a first line without numbers is a
    heading. Bad rows are listed and left out, and so is a row whose crop would take the place of a file: of an original
    where both folders are one, or of another crop (a.png and a.jpg).

    Returns:
        Number of crops, and the rows that gave none.

    Raises:
        DataError: the file has no row, or a path leaves the folder.
    """
    written, bad = 0, []
    for name, points in read_landmarks(landmarks):
        if name.startswith("/") or ".." in name.split("/"):
            raise DataError(f"{landmarks}: the path {name} leaves the folder; paths are relative to {folder}")
        if points is None:
            bad.append(BadRow(name, "not ten numbers behind the path"))
            continue
        try:
            picture = Image.fromarray(read_picture(folder / name).permute(1, 2, 0).numpy())
            _check_inside(points, picture.size)
            crop = align(picture, points, size)
            path = (target / name).with_suffix(".jpg")
            if os.path.lexists(path):
                raise ValueError(f"{path} is there already; choose another folder or name")
        except (DataError, ValueError) as error:
            bad.append(BadRow(name, str(error).partition("; repair")[0]))
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            crop.save(temporary, "JPEG", quality=95)
        written += 1
    if written + len(bad) == 0:
        raise DataError(f"{landmarks} has no row; expected path, x1, y1, ..., x5, y5")
    return written, bad


def _check_inside(points: Points, size: tuple[int, int]) -> None:
    centre = np.clip(points, -FARTHEST, FARTHEST).mean(0)
    if (np.abs(points) < FARTHEST).all() and not ((centre >= 0).all() and (centre < size).all()):
        raise ValueError(f"the points lie outside the picture of {size[0]}x{size[1]}")


def read_landmarks(path: Path) -> Iterator[tuple[str, Points | None]]:
    """Name and points (5, 2) of every row; None where a row has not ten numbers.

    Raises:
        DataError: the file is no table of texts.
    """
    try:
        yield from _rows(path)
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path} is no landmark file ({error}); expected rows of path, x1, y1, ..., x5, y5") from None


def _rows(path: Path) -> Iterator[tuple[str, Points | None]]:
    text = read_bounded(path, MAX_JSON).decode("utf-8-sig")
    delimiter = next((mark for mark in ",\t" if mark in text.partition("\n")[0]), " ")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    for number, row in enumerate(reader):
        cells = [cell for cell in row if cell] if delimiter == " " else row
        while cells and not cells[-1].strip():
            cells.pop()
        if not cells:
            continue
        points = _points(cells[1:])
        if points is not None or number > 0 or any(_is_number(cell) for cell in cells[1:]):
            yield cells[0], points


def _points(cells: list[str]) -> Points | None:
    try:
        return np.array([float(cell) for cell in cells]).reshape(5, 2)
    except ValueError:
        return None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
