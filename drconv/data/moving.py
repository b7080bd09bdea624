"""From a loader's batch to what a network takes: moved to the device, pixels normalised there."""

from typing import Any

import torch
from torch import Tensor

from drconv.config import DataConfig
from drconv.interfaces import Batch


def to_device(batch: Any, device: torch.device) -> Any:
    """Moves every tensor in a batch of nested dictionaries, lists and tuples; anything else stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, list | tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)  # a named tuple takes each
    return batch


def prepare(batch: Batch, config: DataConfig, device: torch.device, channels_last: bool = True) -> Batch:
    """Moves a batch and turns its ``image``, uint8 RGB (B, 3, H, W), into the network's float32 input."""
    moved = to_device(batch, device)
    moved["image"] = normalise(moved["image"], config, channels_last)
    return moved


def normalise(pixels: Tensor, config: DataConfig, channels_last: bool = True) -> Tensor:
    """Pixels as the network takes them.

    Args:
        pixels: uint8 RGB (B, 3, H, W).
        config: gives ``channel_order``, and ``mean`` and ``std`` of pixels in 0..255 in that order.
        channels_last: memory format of the result.

    Returns:
        float32 (B, 3, H, W) on the same device.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    image = torch.empty(pixels.shape, device=pixels.device, memory_format=layout)
    # Channel by channel: a third faster on a CPU than one conversion to channels-last, and the order comes for free.
    order = {"rgb": (0, 1, 2), "bgr": (2, 1, 0)}[config.channel_order]
    for channel, (source, mean, std) in enumerate(zip(order, config.mean, config.std, strict=True)):
        image[:, channel] = (pixels[:, source] - mean) / std
    return image
