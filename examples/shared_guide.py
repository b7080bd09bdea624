"""One guide for the two DRConvs of a block, the paper's cheap form, and what the regions are used for."""

import torch
from torch import nn

from drconv import DRConv2d, region_statistics
from drconv.nn import Guide, GuidedSequential

branch = nn.Sequential(
    DRConv2d(24, 24, 1, bias=False, guide="shared"),
    nn.BatchNorm2d(24),
    nn.ReLU(),
    nn.Conv2d(24, 24, 3, stride=2, padding=1, groups=24, bias=False),
    nn.BatchNorm2d(24),
    DRConv2d(24, 24, 1, bias=False, guide="shared"),
    nn.BatchNorm2d(24),
    nn.ReLU(),
)
block = GuidedSequential(branch, Guide(24, regions=8))  # computed once, resized after the stride
with region_statistics(block) as statistics:
    output = block(torch.randn(2, 24, 28, 28))
print(tuple(output.shape), {name: round(value["entropy"], 3) for name, value in statistics.items()})
