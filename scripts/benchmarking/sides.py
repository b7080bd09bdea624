"""What ``scripts/benchmark.py`` compares: the networks, their sides, and one call of each."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn

from drconv.config import DRConvConfig, ModelConfig
from drconv.nn import CondConv2d, fuse_for_inference
from models import create_model

NETWORKS = {
    "shufflenetv2_0.5x": ("shufflenetv2", 0.5),
    "shufflenetv2_1x": ("shufflenetv2", 1.0),
    "mobilenetv1": ("mobilenetv1", 1.0),
    "mobilenetv2": ("mobilenetv2", 1.0),
    "mobilefacenet": ("mobilefacenet", 1.0),
}
SIDES = ("plain", "grouped", "experts", "dense", "condconv", "fused")


class RoutedTimmCondConv(TimmCondConv2d):
    """timm's CondConv in the place of ours: it takes the block's routing weights, or makes its own."""

    def __init__(self, ours: CondConv2d) -> None:
        geometry = (ours.kernel_size, ours.stride, ours.padding, ours.dilation, ours.groups)
        super().__init__(ours.in_channels, ours.out_channels, *geometry, ours.bias is not None, ours.experts)
        self.takes_routing, self.routing = ours.takes_routing, ours.routing
        with torch.no_grad():
            self.weight.copy_(ours.weight.flatten(1))
            if ours.bias is not None:
                self.bias.copy_(ours.bias)

    def forward(self, x: Tensor, routing: Tensor | None = None) -> Tensor:
        return super().forward(x, self.routing(x) if routing is None else routing)


def use_timm_condconv(network: nn.Module) -> nn.Module:
    """Put timm's layer in the place of every CondConv; the routing, sigmoid(Linear(GAP(x))) per block, stays."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CondConv2d):
                setattr(parent, name, RoutedTimmCondConv(child))
    return network


def image(network: str, batch: int, size: int, device: str) -> Tensor:
    shape = (3, 112, 96) if network == "mobilefacenet" else (3, size, size)
    return torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)


def create(network: str, side: str, regions: int = 8, size: int = 224) -> nn.Module:
    """A network of one side as it is created."""
    name, width = NETWORKS[network]
    generator = "experts" if side == "experts" else "grouped"
    conv = {"plain": "standard", "condconv": "condconv"}.get(side, "drconv")
    options = DRConvConfig(regions=regions, generator=generator, generator_bias=False)
    torch.manual_seed(0)
    model = create_model(ModelConfig(name=name, width=width, conv=conv, drconv=options), 1000, size)
    return use_timm_condconv(model) if side == "condconv" else model


def build(network: str, side: str, device: str, regions: int = 8, size: int = 224) -> nn.Module:
    """A network of one side, in evaluation mode, with running statistics of random pictures."""
    model = create(network, side, regions, size).to(device=device, memory_format=torch.channels_last)
    with torch.no_grad():
        model.train()(image(network, 8, size, device))
    model.eval()
    return fuse_for_inference(model) if side == "fused" else model


@contextmanager
def kernel_of(side: str) -> Iterator[None]:
    """The kernel of a side, through the environment variable: the reference for ``dense``, else the best."""
    before = os.environ.pop("DRCONV_KERNEL", None)
    if side == "dense":
        os.environ["DRCONV_KERNEL"] = "reference"
    try:
        yield
    finally:
        os.environ.pop("DRCONV_KERNEL", None)
        if before:
            os.environ["DRCONV_KERNEL"] = before


def inference(model: nn.Module, side: str, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), kernel_of(side):
            model(x)

    return run


def training_step(model: nn.Module, side: str, x: Tensor) -> Callable[[], None]:
    """Forward, backward and an SGD step; the loss is the outputs' mean square."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        with kernel_of(side):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    return run


def layer_step(layer: nn.Module, side: str, x: Tensor) -> Callable[[], None]:
    """Forward and backward of one layer, for a given gradient of its output; the input needs its gradient too."""
    x = x.detach().requires_grad_()
    with torch.no_grad():
        gradient = torch.randn_like(layer(x))
    parameters = [x, *layer.parameters()]

    def run() -> None:
        with kernel_of(side):
            torch.autograd.grad(layer(x), parameters, gradient)

    return run
