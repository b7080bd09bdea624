"""Reading picture files."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from drconv.errors import DataError


def read_picture(path: str | os.PathLike[str], exif: bool = False) -> Tensor:
    """Decode a picture file of any colour mode to uint8 RGB of shape (3, H, W).

    The content decides the format, not the file's ending: ImageNet has a PNG that is called JPEG. EXIF orientation is
    ignored unless asked for, as in every published pipeline for ImageNet and COCO.

    Raises:
        DataError: the file is missing, truncated or not a picture; the message names it.
    """
    try:
        with Image.open(path) as picture:
            if exif:
                ImageOps.exif_transpose(picture, in_place=True)
            pixels = np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything on broken bytes, from SyntaxError to struct.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot decode {path} ({reason}); repair or remove it, or set data.broken=skip") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
