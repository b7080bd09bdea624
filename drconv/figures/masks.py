"""Pictures of what the guides choose, in the form of the paper's Figure 3: a picture and its masks in M colours."""

import colorsys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from drconv.errors import ConfigError
from drconv.nn.guide import Guide

Colour = tuple[int, int, int]
GAP = 8  # pixels between the cells
TEXT_SIZE = 13
LINE = TEXT_SIZE + 5
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@dataclass(frozen=True)
class Mask:
    """The regions of one guide.

    Attributes:
        name: of the guide in the network.
        regions: M.
        chosen: int64 (B, H, W), the region of each position at the guide's own resolution.
    """

    name: str
    regions: int
    chosen: Tensor

    def usage(self) -> list[float]:
        """Share of the positions of each region over all pictures."""
        return (torch.bincount(self.chosen.flatten(), minlength=self.regions) / self.chosen.numel()).tolist()


@torch.inference_mode()
def compute_masks(network: nn.Module, images: Tensor) -> list[Mask]:
    """Arg max of every guide for a batch (B, 3, H, W), in the order of the guides' calls; the mode is left as it was.

    Raises:
        ConfigError: the network has no guide.
    """
    was_training = network.training
    with _logits_of_guides(network) as logits:
        network.eval()(images)
    network.train(was_training)
    if not logits:
        raise ConfigError("this network has no guide; masks need a run with model.conv=drconv")
    return [Mask(name, values.shape[1], values.argmax(1).cpu()) for name, values in logits.items()]


@contextmanager
def _logits_of_guides(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    logits: dict[str, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, Guide):
            handles.append(module.register_forward_hook(lambda _, x, y, name=name: logits.__setitem__(name, y)))
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()


def choose_masks(masks: list[Mask], patterns: list[str]) -> list[Mask]:
    """Those whose name fits a pattern; without patterns the middle guide at each resolution.

    Raises:
        ConfigError: a pattern fits none.
    """
    if not patterns:
        by_resolution: dict[torch.Size, list[Mask]] = {}
        for mask in masks:
            by_resolution.setdefault(mask.chosen.shape[1:], []).append(mask)
        return [group[len(group) // 2] for group in by_resolution.values()]
    for pattern in patterns:
        if not any(fnmatchcase(mask.name, pattern) for mask in masks):
            raise ConfigError(f"no guide fits {pattern}; the guides are {', '.join(mask.name for mask in masks)}")
    return [mask for mask in masks if any(fnmatchcase(mask.name, pattern) for pattern in patterns)]


def region_colours(regions: int) -> list[Colour]:
    """M hues around the circle; every other one is darker, so that neighbours differ."""
    colours = []
    for region in range(regions):
        red, green, blue = colorsys.hsv_to_rgb(region / regions, 0.75, 0.65 if region % 2 else 0.97)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def paint_mask(chosen: Tensor, regions: int, size: int) -> Image.Image:
    """(H, W) regions as a square picture of ``size`` pixels, each position a block of one colour."""
    colours = np.array(region_colours(regions), dtype=np.uint8)
    return Image.fromarray(colours[chosen.numpy()]).resize((size, size), Image.Resampling.NEAREST)


def draw_figure(pictures: Tensor, masks: list[Mask], size: int) -> Image.Image:
    """A row for each picture: the picture, then its masks; below each column the usage of its regions.

    Args:
        pictures: uint8 (B, 3, S, S).
        masks: of these pictures.
        size: pixels of the side of a cell.
    """
    step = size + GAP
    legend_height = LINE * (1 + max(mask.regions for mask in masks))
    top = GAP + 2 * LINE
    extent = (GAP + step * (1 + len(masks)), top + step * len(pictures) + legend_height + GAP)
    figure = Image.new("RGB", extent, WHITE)
    draw = ImageDraw.Draw(figure)
    font = ImageFont.load_default(TEXT_SIZE)
    for row, picture in enumerate(pictures):
        cell = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        figure.paste(cell, (GAP, top + row * step))
    for column, mask in enumerate(masks, start=1):
        left = GAP + column * step
        draw.text((left, GAP), _title(mask, size, font), BLACK, font)
        for row, chosen in enumerate(mask.chosen):
            figure.paste(paint_mask(chosen, mask.regions, size), (left, top + row * step))
        _draw_legend(draw, mask, (left, top + len(pictures) * step), font)
    return figure


def _title(mask: Mask, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Name and resolution, the name cut at its front to the width of a cell."""
    name = mask.name.removesuffix(".guide")
    while font.getlength(name) > width:
        name = name[1:]
    return f"{name}\n{mask.chosen.shape[1]} x {mask.chosen.shape[2]}"


def _draw_legend(
    draw: ImageDraw.ImageDraw, mask: Mask, corner: tuple[int, int], font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    left, top = corner
    draw.text((left, top), "share of positions", BLACK, font)
    for region, (colour, share) in enumerate(zip(region_colours(mask.regions), mask.usage(), strict=True)):
        y = top + LINE * (region + 1)
        draw.rectangle((left, y + 2, left + TEXT_SIZE, y + 2 + TEXT_SIZE), colour)
        draw.text((left + TEXT_SIZE + 6, y), f"{region + 1}: {share:.1%}", BLACK, font)
