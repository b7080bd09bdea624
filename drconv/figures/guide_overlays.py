"""What the guides of a network choose, laid over a picture of any size; for detectors, whose pictures are padded."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from drconv.figures.masks import BLACK, GAP, LINE, TEXT_SIZE, WHITE, Mask, compute_masks, region_colours
from drconv.nn import pool_inside

OPACITY = 0.5
PADDING = 32  # of a picture's sides, as detectors have it


def draw_guides(network: nn.Module, images: Tensor, picture: Tensor) -> Image.Image:
    """What the guides of a detector's body and pyramid choose in a picture, laid over it.

    Args:
        network: body and pyramid.
        images: the picture as the network takes it, (1, 3, H', W'); padded here as in evaluation.
        picture: uint8 (3, H, W).

    Raises:
        ConfigError: the network has no guide.
    """
    size = (images.shape[2], images.shape[3])
    rows, columns = (-(-side // PADDING) * PADDING for side in size)
    padded = nn.functional.pad(images, (0, columns - size[1], 0, rows - size[0]))
    with pool_inside(network, [size], (rows, columns)):
        masks = compute_masks(network, padded)
    return overlay_guides(picture, masks, (size[0] / rows, size[1] / columns))


def overlay_guides(picture: Tensor, masks: list[Mask], shares: tuple[float, float] = (1.0, 1.0)) -> Image.Image:
    """The picture once for each guide, in the colours of the regions.

    Args:
        picture: uint8 (3, H, W).
        masks: of this picture alone, each (1, h, w).
        shares: of the masks' rows and columns that lie in the picture; the rest is padding to the right and below.
    """
    canvas = picture.permute(1, 2, 0).numpy()
    height, width = canvas.shape[:2]
    figure = Image.new("RGB", (GAP + (width + GAP) * len(masks), 2 * GAP + LINE + height), WHITE)
    draw, font = ImageDraw.Draw(figure), ImageFont.load_default(TEXT_SIZE)
    for number, mask in enumerate(masks):
        left, (rows, columns) = GAP + number * (width + GAP), mask.chosen.shape[1:]
        draw.text((left, GAP // 2), f"{mask.name.removesuffix('.guide')}, {rows} x {columns}", BLACK, font)
        regions = Image.fromarray(mask.chosen[0].numpy().astype(np.uint8))
        inside = (0.0, 0.0, columns * shares[1], rows * shares[0])
        spread = np.asarray(regions.resize((width, height), Image.Resampling.NEAREST, inside))
        colours = np.array(region_colours(mask.regions), dtype=np.float32)[spread]
        blended = (1 - OPACITY) * canvas + OPACITY * colours
        figure.paste(Image.fromarray(blended.round().astype(np.uint8)), (left, GAP + LINE))
    return figure
