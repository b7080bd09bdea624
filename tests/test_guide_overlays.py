"""Overlays of a detector's guides: they see the padded picture, and its padding is cut off."""

import torch
from torch import nn

from drconv.figures.guide_overlays import draw_guides, inside_masks
from drconv.nn import DRConv2d


def test_the_padding_is_cut_off() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(8), DRConv2d(3, 4, 1, regions=3))
    images, picture = torch.randn(1, 3, 44, 64), torch.randint(0, 256, (3, 88, 128), dtype=torch.uint8)
    (mask,) = inside_masks(network, images)
    padded = nn.functional.pad(images, (0, 0, 0, 20))
    expected = network[1].guide(nn.functional.avg_pool2d(padded, 8)).argmax(1)[0]  # type: ignore[operator]
    assert expected.unique().numel() > 1
    assert mask.chosen[0].equal(expected[:6])
    assert draw_guides(network, images, picture, []).width > 2 * 128
