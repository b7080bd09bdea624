"""Resizing and flipping of a picture with its boxes and masks; all randomness comes from the sample's seed."""

from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from drconv.config import CocoConfig
from drconv.tasks.detection.runs import decode_masks

Size = tuple[int, int]


@dataclass(frozen=True)
class Change:
    """What a sample's transform does: the new rows and columns, and whether it is mirrored afterwards."""

    size: Size
    is_flipped: bool = False


def draw_change(size: Size, config: CocoConfig, flip: float, seed: int) -> Change:
    """The transform of a training sample: one of ``data.coco.sizes`` for the shorter side, a flip with this chance."""
    random = Random(seed)
    shorter = config.sizes[random.randrange(len(config.sizes))]
    return Change(fit(size, shorter, config.max_size), flip > 0 and random.random() < flip)


def fit(size: Size, shorter: int, longest: int) -> Size:
    """Rows and columns after the shorter side was made ``shorter``, or less where the longer would pass ``longest``.

    Rounded to the nearest pixel, as in detectron2.
    """
    scale = min(shorter / min(size), longest / max(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def change_picture(picture: Tensor, change: Change) -> Tensor:
    """uint8 (3, H, W): bilinear with antialiasing, as Pillow resizes."""
    if picture.shape[1:] != change.size:
        picture = F.resize(picture, list(change.size), interpolation=InterpolationMode.BILINEAR, antialias=True)
    return picture.flip(-1) if change.is_flipped else picture


def change_boxes(boxes: Tensor, before: Size, change: Change) -> Tensor:
    """Corners (n, 4); rows and columns have a factor of their own, and x becomes W - x under a flip."""
    rows, columns = change.size[0] / before[0], change.size[1] / before[1]
    boxes = boxes * torch.tensor([columns, rows, columns, rows])
    if change.is_flipped:
        x1, y1, x2, y2 = boxes.unbind(1)
        boxes = torch.stack([change.size[1] - x2, y1, change.size[1] - x1, y2], dim=1)
    return boxes


def change_masks(masks: list[bytes], before: Size, change: Change) -> Tensor:
    """uint8 (n, H, W) from compressed runs: nearest pixel, then the flip."""
    if not masks:
        return torch.zeros(0, *change.size, dtype=torch.uint8)
    # Column by column, as the runs are: twice as fast as row by row.
    columns = torch.from_numpy(np.ascontiguousarray(decode_masks(masks, before).transpose(2, 1, 0)))
    resized = torch.nn.functional.interpolate(columns[:, None], (change.size[1], change.size[0]), mode="nearest")[:, 0]
    return (resized.flip(1) if change.is_flipped else resized).transpose(1, 2)


def restore_boxes(boxes: Tensor, before: Size, after: Size) -> Tensor:
    """Corners (n, 4) in a resized picture back in the original one, clipped to it."""
    rows, columns = before[0] / after[0], before[1] / after[1]
    boxes = boxes * boxes.new_tensor([columns, rows, columns, rows])
    limits = boxes.new_tensor([before[1], before[0], before[1], before[0]])
    return torch.minimum(boxes.clamp(min=0), limits)
