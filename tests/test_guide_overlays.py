"""Overlays of a detector's guides: the colours lie where the regions are, and the padding is cut off."""

import numpy as np
import torch
from torch import nn

from drconv.figures.guide_overlays import OPACITY, draw_guides, overlay_guides
from drconv.figures.masks import GAP, LINE, Mask, region_colours
from drconv.nn import DRConv2d


def test_regions_are_spread_over_the_picture() -> None:
    """A map of 2 x 4, whose last column is padding, over a picture of 4 x 6: blocks of 2 x 2 pixels."""
    picture = torch.randint(0, 256, (3, 4, 6), dtype=torch.uint8)
    chosen = torch.tensor([[[0, 1, 2, 3], [3, 2, 1, 0]]])
    figure = np.asarray(overlay_guides(picture, [Mask("a.guide", 4, chosen)] * 2, (1.0, 0.75)))
    assert figure.shape == (4 + LINE + 2 * GAP, 2 * (6 + GAP) + GAP, 3)
    for left in (GAP, 2 * GAP + 6):
        shown = figure[GAP + LINE :, left : left + 6]
        for y, x in np.ndindex(4, 6):
            colour = np.array(region_colours(4)[chosen[0, y // 2, x // 2]])
            expected = (1 - OPACITY) * picture[:, y, x].numpy() + OPACITY * colour
            assert np.abs(shown[y, x] - expected).max() <= 0.5


def test_the_guides_see_the_padded_picture() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(8), DRConv2d(3, 4, 1, regions=3))
    images, picture = torch.randn(1, 3, 40, 64), torch.randint(0, 256, (3, 80, 128), dtype=torch.uint8)
    figure = np.asarray(draw_guides(network, images, picture))
    logits = network[1].guide(nn.functional.avg_pool2d(images, 8))  # type: ignore[operator]
    chosen = logits.argmax(1)[0]
    assert chosen.unique().numel() > 1
    for y, x in np.ndindex(5, 8):  # 16 pixels a position
        colour = np.array(region_colours(3)[chosen[y, x]])
        shown = figure[GAP + LINE + 16 * y + 8, GAP + 16 * x + 8]
        expected = (1 - OPACITY) * picture[:, 16 * y + 8, 16 * x + 8].numpy() + OPACITY * colour
        assert np.abs(shown - expected).max() <= 0.5
