"""What is imitated: inputs, and layers whose regions and filters are known."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS = 16
SIZE = 12  # rows and columns of a map
COARSE = 4  # of the map that is enlarged
NOISE = 0.3
DEPTH = 3  # layers of the network


def draw_maps(batch: int, generator: torch.Generator) -> Tensor:
    """Smooth random maps (B, C, H, W), enlarged (bicubic) from 4x4, plus white noise: neighbours are alike."""
    coarse = torch.randn(batch, CHANNELS, COARSE, COARSE, generator=generator)
    smooth = F.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic", align_corners=False)
    return smooth + NOISE * torch.randn(smooth.shape, generator=generator)


class PlantedLayer(nn.Module):
    """A convolution with a filter for each region; regions are the arg max of a 1x1 guide.

    Guide and filters are drawn at random, filters independently so that they keep the input's variance.
    """

    def __init__(self, regions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("guide", torch.randn(regions, CHANNELS, generator=generator))
        filters = torch.randn(regions, CHANNELS, CHANNELS, generator=generator) * CHANNELS**-0.5
        self.register_buffer("filters", filters)

    def mask(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to regions (B, H, W)."""
        return torch.einsum("bchw,mc->bmhw", x, self.guide).max(1).indices

    def forward(self, x: Tensor) -> Tensor:
        chosen, outputs = self.mask(x)[:, None], torch.zeros_like(x)
        for region, weight in enumerate(self.filters):
            outputs = torch.where(chosen == region, F.conv2d(x, weight[:, :, None, None]), outputs)
        return outputs


def stack(layers: list[nn.Module]) -> nn.Sequential:
    """The layers, each followed by a batch norm, and by a ReLU but for the last."""
    modules: list[nn.Module] = []
    for layer in layers:
        modules += [layer, nn.BatchNorm2d(CHANNELS), nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def plant(regions: int, depth: int, generator: torch.Generator) -> nn.Module:
    """A layer, or a network of several with batch norms, whose output is imitated; in evaluation mode.

    The network's batch norms take their statistics from maps, so that every layer has something to separate.
    """
    layers: list[nn.Module] = [PlantedLayer(regions, generator) for _ in range(depth)]
    if depth == 1:
        return layers[0]
    network = stack(layers)
    with torch.no_grad():
        for module in network:
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the plain average
        for _ in range(8):
            network(draw_maps(32, generator))
    return network.eval().requires_grad_(False)
