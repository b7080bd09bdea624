"""The form of the paper's Figure 3: a picture and its masks in M colours, a row for each picture."""

import colorsys

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor

from drconv.figures.canvas import TEXT_SIZE, Colour, Item, Pixels, Rectangle, Text
from drconv.figures.masks import Mask

GAP = 8  # pixels between the cells
LINE = TEXT_SIZE + 5
OPACITY = 0.55  # of a mask that lies on its picture


def region_colours(regions: int) -> list[Colour]:
    """M hues around the circle; every other one is darker, so that neighbours differ."""
    colours = []
    for region in range(regions):
        red, green, blue = colorsys.hsv_to_rgb(region / regions, 0.75, 0.65 if region % 2 else 0.97)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def colours_across(masks: list[Mask]) -> list[list[Colour]]:
    """Colours by region for each mask, so that a colour holds across a row.

    The numbers of regions mean nothing from one guide to the next. A region takes the colour of that region of the
    mask before with which it shares most positions, the largest such share first; guides with another M begin anew.
    """
    found: list[list[Colour]] = []
    for number, mask in enumerate(masks):
        own = region_colours(mask.regions)
        if number and masks[number - 1].regions == mask.regions:
            partners = _partners(masks[number - 1], mask)
            own = [found[-1][partners[region]] for region in range(mask.regions)]
        found.append(own)
    return found


def _partners(before: Mask, mask: Mask) -> dict[int, int]:
    """For each region the one of the mask before that it goes with, one to one."""
    shared = torch.zeros(mask.regions, before.regions)
    for old, new in zip(before.chosen, mask.chosen, strict=True):
        size = [max(pair) for pair in zip(old.shape, new.shape, strict=True)]
        a, b = (torch.nn.functional.interpolate(x[None, None].float(), size)[0, 0].long() for x in (new, old))
        counts = torch.bincount((a * before.regions + b).flatten(), minlength=shared.numel())
        shared += counts.view_as(shared) / counts.sum()
    pairs: dict[int, int] = {}
    for place in shared.flatten().argsort(descending=True, stable=True).tolist():
        new, old = divmod(place, before.regions)
        if new not in pairs and old not in pairs.values():
            pairs[new] = old
    return pairs


def paint_mask(chosen: Tensor, colours: list[Colour], picture: Image.Image | None = None) -> Image.Image:
    """(H, W) regions in their colours, a pixel for each position; with a picture, on it, at its size."""
    painted = Image.fromarray(np.array(colours, dtype=np.uint8)[chosen.numpy()])
    if picture is None:
        return painted
    return Image.blend(picture, painted.resize(picture.size, Image.Resampling.NEAREST), OPACITY)


def draw_figure(
    pictures: list[Tensor], masks: list[Mask], size: int, is_overlay: bool = False
) -> tuple[tuple[int, int], list[Item]]:
    """A row for each picture: the picture, then its masks; below each column the usage of its regions.

    Args:
        pictures: of each uint8 (3, H, W).
        masks: of these pictures.
        size: pixels of the longer side of a picture in the figure.
        is_overlay: masks lie on their picture.

    Returns:
        Width and height, and the items of a ``drconv.figures.canvas``.
    """
    step, top = size + GAP, GAP + 2 * LINE
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    heights = [round(size * image.height / max(image.size)) for image in images]
    widths = [round(size * image.width / max(image.size)) for image in images]
    tops = [top + sum(heights[:row]) + GAP * row for row in range(len(images))]
    items: list[Item] = []
    for image, width, height, y in zip(images, widths, heights, tops, strict=True):
        items.append(Pixels((GAP, y, width, height), image))
    below = tops[-1] + heights[-1] + GAP
    for column, (mask, colours) in enumerate(zip(masks, colours_across(masks), strict=True), start=1):
        left = GAP + column * step
        items += [Text(left, GAP, _cut(mask.name, size)), Text(left, GAP + LINE, _resolution(mask))]
        for chosen, image, width, height, y in zip(mask.chosen, images, widths, heights, tops, strict=True):
            painted = paint_mask(chosen, colours, image if is_overlay else None)
            items.append(Pixels((left, y, width, height), painted, is_blocky=not is_overlay))
        items += _legend(mask, colours, left, below)
    bottom = below + LINE * (1 + max(mask.regions for mask in masks)) + GAP
    return (GAP + step * (1 + len(masks)), bottom), items


def _cut(name: str, width: int) -> str:
    """The guide's name, cut at its front to the width of a cell."""
    font = ImageFont.load_default(TEXT_SIZE)
    name = name.removesuffix(".guide")
    while font.getlength(name) > width:
        name = name[1:]
    return name


def _resolution(mask: Mask) -> str:
    sizes = {tuple(chosen.shape) for chosen in mask.chosen}
    rows, columns = sizes.pop()
    return "of several sizes" if sizes else f"{rows} x {columns}"


def _legend(mask: Mask, colours: list[Colour], left: int, top: int) -> list[Item]:
    items: list[Item] = [Text(left, top, "share of positions")]
    for region, (colour, share) in enumerate(zip(colours, mask.usage(), strict=True)):
        y = top + LINE * (region + 1)
        items.append(Rectangle((left, y + 2, TEXT_SIZE, TEXT_SIZE), colour))
        items.append(Text(left + TEXT_SIZE + 6, y, f"{region + 1}: {share:.1%}"))
    return items
