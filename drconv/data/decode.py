"""Reading picture files."""

import os

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from drconv.errors import DataError, printable
from drconv.files import open_regular

# Pillow's names of the formats that docs/data.md promises. Whatever its name says, a file is opened as one of these or
# not at all: others of Pillow's forty start programs (EPS) or were never meant for data from anywhere.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF")
MAX_PIXELS = 2**26  # 200 MB once decoded; data.max_pixels
_SIXTEEN_BITS = ("PNG", "PPM")  # formats whose 32-bit mode in Pillow holds 16-bit grey


def read_picture(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, exif: bool = False) -> Tensor:
    """Decode a picture file of any colour mode to uint8 RGB of shape (3, H, W).

    The content decides the format, not the file's ending: ImageNet has a PNG that is called JPEG. 16-bit grey is
    scaled to 8 bits; of an animation the first picture is taken; transparency is dropped. EXIF orientation is ignored
    unless asked for, as in every published pipeline for ImageNet and COCO.

    Raises:
        DataError: the file is missing, no regular file, truncated, of another format, larger than ``max_pixels``, or
            has numbers without a fixed white (float, 32-bit integers); the message names it.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > max_pixels:
                raise ValueError(f"{width} x {height} pixels, and data.max_pixels allows {max_pixels}")
            if exif:
                ImageOps.exif_transpose(picture, in_place=True)
            pixels = as_rgb(picture)
    except Exception as error:  # Pillow raises nearly anything on broken bytes, from SyntaxError to struct.error
        name = printable(os.fspath(path))
        message = f"cannot decode {name} ({_reason(error)}); repair or remove it"
        raise DataError(message) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def as_rgb(picture: Image.Image) -> NDArray[np.uint8]:
    """Pixels of any colour mode as uint8 (H, W, 3).

    Raises:
        ValueError: numbers without a fixed white.
    """
    if picture.mode == "RGB":
        return np.array(picture)
    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN_BITS):
        grey = (np.array(picture).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {picture.mode} have no fixed white; convert them to 8 or 16 bits")
    return np.array(picture.convert("RGB"))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"not one of {', '.join(FORMATS)}, or damaged"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__
