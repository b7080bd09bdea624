"""From the mask head's 28x28 probabilities to compressed runs of the whole picture."""

import numpy as np
import torch
from pycocotools import mask as rle
from torch import Tensor

THRESHOLD = 0.5


def paste_mask(mask: Tensor, box: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A mask in its place, uint8 (rows, columns) in Fortran order, as pycocotools takes it.

    Exact: a pixel's value is the bilinear sample of the mask at the pixel's centre, zero outside the box. torchvision
    rounds boxes to whole pixels first, which costs about half a point of mask AP.

    Args:
        mask: probabilities (S, S) over the box.
        box: corners (4,) in pixels of the picture.
        size: rows and columns of the picture.
    """
    x1, y1, x2, y2 = box.tolist()
    window = [(max(0, int(y1)), min(size[0], int(np.ceil(y2)))), (max(0, int(x1)), min(size[1], int(np.ceil(x2))))]
    rows = _sampling(window[0], y1, y2, mask.shape[0])
    columns = _sampling(window[1], x1, x2, mask.shape[1])
    whole = np.zeros(size, dtype=np.uint8, order="F")
    (top, bottom), (left, right) = window
    whole[top:bottom, left:right] = (rows @ mask.double() @ columns.T >= THRESHOLD).numpy()
    return whole


def encode_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """Compressed runs of masks (n, S, S) in boxes (n, 4)."""
    return [rle.encode(paste_mask(mask, box, size))["counts"] for mask, box in zip(masks, boxes, strict=True)]


def _sampling(window: tuple[int, int], first: float, end: float, cells: int) -> Tensor:
    """(pixels, cells): how much of each cell's value a pixel's centre takes in linear interpolation."""
    centres = torch.arange(window[0], max(window), dtype=torch.float64) + 0.5
    places = (centres - first) / max(end - first, 1e-6) * cells - 0.5
    return (1 - (places[:, None] - torch.arange(cells, dtype=torch.float64)).abs()).clamp(min=0)
