"""What the guides of a detector choose, laid over a picture of any size without the padding that they saw."""

import math

from PIL import Image
from torch import Tensor, nn

from drconv.figures.canvas import as_image
from drconv.figures.mask_figure import draw_figure
from drconv.figures.masks import Mask, choose_masks, compute_masks
from drconv.nn import pool_inside

PADDING = 32  # of a picture's sides, as detectors have it


def draw_guides(network: nn.Module, images: Tensor, picture: Tensor, guides: list[str]) -> Image.Image:
    """The picture, then the regions of each chosen guide over it.

    Args:
        network: a detector's body and pyramid.
        images: the picture as the network takes it, (1, 3, H', W'); padded here as in evaluation.
        picture: uint8 (3, H, W).
        guides: patterns of their names; without, the middle one at each resolution.

    Raises:
        ConfigError: the network has no guide, or none that fits.
    """
    masks = choose_masks(inside_masks(network, images), guides)
    return as_image(*draw_figure([picture], masks, max(picture.shape[1:]), is_overlay=True))


def inside_masks(network: nn.Module, images: Tensor) -> list[Mask]:
    """The guides' regions of one picture, cut to the positions that begin in it."""
    size = (images.shape[2], images.shape[3])
    rows, columns = (-(-side // PADDING) * PADDING for side in size)
    padded = nn.functional.pad(images, (0, columns - size[1], 0, rows - size[0]))
    with pool_inside(network, [size], (rows, columns)):
        masks = compute_masks(network, padded)
    cut = []
    for mask in masks:
        height, width = mask.chosen[0].shape
        kept = math.ceil(height * size[0] / rows), math.ceil(width * size[1] / columns)
        cut.append(Mask(mask.name, mask.regions, [mask.chosen[0][: kept[0], : kept[1]]]))
    return cut
