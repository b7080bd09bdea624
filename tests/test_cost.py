"""Costs against published numbers, the paper's tables and torch's own counter."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from drconv.nn import (
    CondConv2d,
    DeformableKernelConv2d,
    DRConv2d,
    Guide,
    GuidedSequential,
    LocalConv2d,
    RoutedSequential,
    count_cost,
    substitute,
)
from drconv.nn.condconv import Routing
from models.mobilefacenet import MobileFaceNet
from models.mobilenetv1 import build_mobilenetv1
from models.mobilenetv2 import build_mobilenetv2
from models.shufflenetv2 import ShuffleNetV2

GEOMETRIES = [(6, 8, 1), (6, 8, 1, 2), (6, 8, 1, 1, 0, 1, 2), (6, 9, 3, 2, 1, 1, 3), (6, 6, 3, 1, 1, 1, 6)]


def _count_torch(network: nn.Module, channels: int = 6) -> int:
    """Multiply-adds that torch's counter sees in one forward."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.randn(1, channels, 10, 8))
    return counter.get_total_flops() // 2


def _count_ours(network: nn.Module, channels: int = 6) -> Any:
    (layer,) = count_cost(network, (channels, 10, 8)).layers
    return layer.products


@pytest.mark.parametrize(
    ("build", "millions"),
    [
        (torchvision.models.shufflenet_v2_x0_5, 40.48),
        (torchvision.models.mobilenet_v2, 300.77),
        (lambda: timm.create_model("mobilenetv1_100"), 568.74),
    ],
)
def test_plain_networks_cost_what_is_published(build: Callable[[], nn.Module], millions: float) -> None:
    assert round(count_cost(build(), 224).multiply_adds / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("build", "size", "plain", "condconv", "drconv"),
    [
        (lambda: ShuffleNetV2(0.5), 224, 41.73, (42.65, 42.75), (44.8, 45.0)),
        (lambda: ShuffleNetV2(1.0), 224, 147.06, (152.45, 152.55), (156.8, 157.3)),
        (build_mobilenetv2, 224, 302.05, None, (326.8, 328.0)),
        (build_mobilenetv1, 224, 569.76, None, (610.3, 611.0)),
        (MobileFaceNet, (112, 96), 189.41, (195.65, 195.75), (200.1, 200.7)),
    ],
    ids=["shufflenetv2_0.5x", "shufflenetv2_1x", "mobilenetv2", "mobilenetv1", "mobilefacenet"],
)
def test_the_papers_convention_gives_its_printed_numbers(
    build: Callable[[], nn.Module],
    size: int | tuple[int, int],
    plain: float,
    condconv: tuple[float, float] | None,
    drconv: tuple[float, float],
) -> None:
    assert round(count_cost(build(), size).paper_multiply_adds / 1e6, 2) == plain
    for conv, bounds in {"condconv": condconv, "drconv": drconv}.items():
        if bounds is not None:
            network = build()
            substitute(network, conv, input_size=size)
            assert bounds[0] <= count_cost(network, size).paper_multiply_adds / 1e6 <= bounds[1]


def test_deformable_mobilenetv2_costs_the_printed_760_million() -> None:
    """With the 17 depthwise convolutions replaced, and with the 1x1 ones as well."""
    network = build_mobilenetv2()
    names = [name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert len(names) == 17
    substitute(network, "deformable", names)
    assert 755 < count_cost(network, 224).multiply_adds / 1e6 < 765
    substitute(network, "deformable")
    assert round(count_cost(network, 224).multiply_adds / 1e6) == 765


def test_local_mobilefacenet_costs_what_the_plain_one_does() -> None:
    network = MobileFaceNet()
    before = count_cost(network, (112, 96))
    layers = ["blocks.13.main.6", "blocks.14.main.0", "blocks.14.main.6"]  # D5
    substitute(network, "local", layers, input_size=(112, 96))
    after = count_cost(network, (112, 96))
    assert after.multiply_adds == before.multiply_adds
    assert after.parameters - before.parameters == 3 * 128 * 256 * (7 * 6 - 1)


@pytest.mark.parametrize("build", [torchvision.models.resnet18, torchvision.models.shufflenet_v2_x0_5])
def test_plain_networks_agree_with_torch(build: Callable[[], nn.Module]) -> None:
    network = build().eval()
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.randn(1, 3, 64, 64))
    assert count_cost(network, 64).multiply_adds == counter.get_total_flops() // 2


@pytest.mark.parametrize("case", GEOMETRIES)
def test_condconv_and_local_agree_with_torch(case: tuple[int, ...]) -> None:
    for layer in (CondConv2d(*case, experts=3), LocalConv2d(*case, input_size=(10, 8))):
        assert _count_ours(layer).true == _count_torch(layer)


@pytest.mark.parametrize("case", GEOMETRIES)
def test_deformable_agrees_with_torch_part_by_part(case: tuple[int, ...]) -> None:
    """Our code samples with dense S x S hat functions, of which four are not zero: four are counted.

    The product of local kernels with their pixels is elementwise, which torch's counter does not see.
    """
    layer = DeformableKernelConv2d(*case)
    ours = _count_ours(layer)
    positions = layer(torch.randn(1, 6, 10, 8)).shape[2:].numel()
    offsets = layer.offset.weight.numel() * (positions if layer.is_local else 1)
    sampling = ours.filters - offsets
    dense_sampling = sampling * layer.scope**2 // 4
    assert _count_torch(layer) == offsets + dense_sampling + (0 if layer.is_local else ours.output)
    assert ours.output == positions * layer.weight[..., 0, 0].numel() * layer.kernel_size[0] ** 2


@pytest.mark.parametrize("case", GEOMETRIES)
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": False}, {"hidden": 8}, {"generator_bias": True}, {"generator": "experts", "experts": 3}],
    ids=str,
)
def test_drconv_agrees_with_torch_part_by_part(
    case: tuple[int, ...], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference kernel computes the output of every region; the factored form, which is counted, one."""
    monkeypatch.setenv("DRCONV_KERNEL", "reference")
    regions = 4
    layer = DRConv2d(*case, regions=regions, **options)
    ours = _count_ours(layer)
    x = torch.randn(1, 6, 10, 8)
    positions, taps = layer(x).shape[2:].numel(), layer.weight[0, 0, 0].numel()

    parts = {"guide": 0, "generator": 0}
    for name in parts:
        module = getattr(layer, name)
        if module is not None:
            parts[name] = _count_torch(module)
    assert ours.guide == parts["guide"]
    assert ours.output == positions * layer.weight[0].numel()

    gate = 0
    if layer.generator is not None:
        gate = layer.generator.weight.numel() * layer.generator.size[0] * layer.generator.size[1]
        assert layer.generator.size != (1, 1) or gate == parts["generator"]  # pooling to K x K is a product there
    if layer.is_factored:
        scaling = 0 if layer.generator is None else positions * 6 * taps  # elementwise: not seen by torch
        assert ours.filters == gate + scaling
    elif layer.experts:
        assert ours.filters == gate + regions * layer.weight.numel()
    else:
        assert ours.filters == gate + layer.weight.numel()  # elementwise: not seen by torch
    seen_mixing = regions * layer.weight.numel() if layer.experts else 0
    assert _count_torch(layer) == regions * ours.output + parts["guide"] + parts["generator"] + seen_mixing


def test_shared_guides_and_routings_are_counted_once() -> None:
    def block(**options: Any) -> nn.Sequential:
        kind = DRConv2d if "guide" in options else CondConv2d
        return nn.Sequential(kind(6, 6, 1, **options), nn.ReLU(), kind(6, 6, 1, **options))

    guided = count_cost(GuidedSequential(block(guide="shared", regions=4), Guide(6, 4)), (6, 10, 8))
    assert [layer.kind for layer in guided.layers] == ["Guide", "DRConv2d", "DRConv2d"]
    assert [layer.products.guide for layer in guided.layers] == [80 * 6 * 4, 0, 0]
    routed = RoutedSequential(block(routing="shared", experts=3), Routing(6, 3))
    assert count_cost(routed, (6, 10, 8)).multiply_adds == _count_torch(routed)


def test_pooling_and_linear_layers_by_both_conventions() -> None:
    network = nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(12, 5))
    cost = count_cost(network, 16)
    assert [layer.multiply_adds for layer in cost.layers] == [0, 0, 60]
    assert [layer.paper_multiply_adds for layer in cost.layers] == [3 * 3 * 64, 5 * 3 * 4, (2 * 12 - 1) * 5]


class Patches(nn.Module):
    """Folds the four quarters of a picture into the batch, as patch networks do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.cat([half for part in x.chunk(2, 2) for half in part.chunk(2, 3)]))


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 5, 3), LocalConv2d(3, 5, 1, input_size=(8, 8)), nn.ConvTranspose2d(3, 5, 3)]
)
def test_pictures_cut_into_patches(layer: nn.Module) -> None:
    assert count_cost(Patches(layer), 16).multiply_adds == 4 * count_cost(layer, 8).multiply_adds


def test_the_network_is_left_as_it_was() -> None:
    network = torchvision.models.shufflenet_v2_x0_5()
    network.stage2.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    cost = count_cost(network, 64)
    assert modes == [module.training for module in network.modules()]
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert not any(module._forward_hooks for module in network.modules())
    assert cost.parameters == sum(parameter.numel() for parameter in network.parameters())
    lines = str(cost).splitlines()
    assert len(lines) == len(cost.layers) + 2
    assert f"{cost.multiply_adds:,}" in lines[-1]


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"does not take an input of \(1, 5, 32, 32\).*change input_size"):
        count_cost(torchvision.models.resnet18(), (5, 32, 32))
    with pytest.raises(ValueError, match=r"\(C, H, W\)"):
        count_cost(nn.Identity(), (1, 3, 32, 32))
