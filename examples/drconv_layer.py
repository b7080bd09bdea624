"""DRConv2d in ten lines; needs torch and drconv alone."""

import torch
from torch import nn

from drconv import DRConv2d

network = nn.Sequential(
    nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
    DRConv2d(16, 32, kernel_size=1, bias=False, regions=8), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)  # fmt: skip
images, labels = torch.randn(4, 3, 64, 64), torch.randint(10, (4,))
loss = nn.functional.cross_entropy(network(images), labels)
loss.backward()
print(f"loss {loss.item():.3f}, guide gradient {network[3].guide.weight.grad.norm().item():.2e}")
