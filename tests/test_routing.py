"""Guides taught otherwise: a soft choice first, and by the error."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drconv.nn import DRConv2d, substitute
from drconv.nn.diagnostics import set_progress
from drconv.nn.routing import WRONG_SHARE, RoutingTrial, judge_routing, try_routing


def make_layer(**options: object) -> DRConv2d:
    torch.manual_seed(0)
    layer = DRConv2d(4, 6, 3, padding=1, regions=3, filter_sharing=0.0, generator_gradient=1.0, **options).double()
    nn.init.normal_(layer.generator.weight)
    return layer


def mix(layer: DRConv2d, x: Tensor) -> Tensor:
    """Convolutions with every region's filter, weighted by the softmax of the logits."""
    chances, scales = F.conv2d(x, layer.guide.weight, padding=1).softmax(1), layer.generator(x)
    images = []
    for image, chance, scale in zip(x, chances, scales, strict=True):
        filters = [scale[r] * layer.weight[r] for r in range(3)]
        images.append(sum(chance[r] * F.conv2d(image, filters[r], padding=1) for r in range(3)))
    return torch.stack(images) + layer.bias[:, None, None]


def test_soft_choice_is_the_weighted_sum_until_its_time_is_over() -> None:
    layer, x = make_layer(), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    hard = layer(x)
    try_routing(layer, soft_until=0.5, error_loss=0.0, error_damping=1.0)
    twin = copy.deepcopy(layer)
    set_progress(layer, 0.4)
    soft, expected = layer(x), mix(twin, x)
    assert torch.allclose(soft, expected)
    signal = torch.randn_like(soft)
    soft.backward(signal)
    expected.backward(signal)
    for (name, parameter), other in zip(layer.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(parameter.grad, other.grad), name
    assert torch.equal(layer.eval()(x), hard)
    set_progress(layer, 0.5)
    assert torch.equal(layer.train()(x), hard)


def test_judgement_by_hand() -> None:
    """Loops over positions: bad ones have the largest gradients; targets, binary cross-entropy, damping."""
    torch.manual_seed(0)
    y = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 3, 3, 5, dtype=torch.float64, requires_grad=True)
    signal = torch.randn_like(y)
    result = judge_routing(y, logits, weight=0.7, damping=0.1)
    assert torch.equal(result, y)
    result.backward(signal)
    positions = [(b, i, j) for b in range(2) for i in range(3) for j in range(5)]
    sizes = {p: float(signal[p[0], :, p[1], p[2]].norm()) for p in positions}
    good = sorted(positions, key=sizes.__getitem__)[: round((1 - WRONG_SHARE) * 30)]
    twin = logits.detach().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    for b, i, j in positions:
        values = twin[b, :, i, j]
        target = torch.zeros(3, dtype=torch.float64)
        target[values.argmax()] = 1
        is_good = (b, i, j) in good
        loss = loss + F.binary_cross_entropy_with_logits(values, target if is_good else 1 - target, reduction="sum")
        assert torch.allclose(y.grad[b, :, i, j], signal[b, :, i, j] * (1 if is_good else 0.1))
    (0.7 * loss / 30).backward()
    assert torch.allclose(logits.grad, twin.grad)


def test_judged_layer_resizes_a_smaller_guide() -> None:
    layer = make_layer(guide_stride=2)
    layer.trial = RoutingTrial(error_loss=0.5, error_damping=0.5)
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    layer(x).square().sum().backward()
    plain = make_layer(guide_stride=2)
    plain(x).square().sum().backward()
    assert layer.guide.weight.grad.isfinite().all()
    assert not torch.allclose(layer.guide.weight.grad, plain.guide.weight.grad)


@pytest.mark.parametrize("options", [{}, {"error_damping": 0.1}])
def test_every_drconv_of_a_network_is_told(options: dict[str, float]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    substitute(network, regions=2, layers="*")
    try_routing(network, **{"soft_until": 0.0, "error_loss": 0.0, "error_damping": 1.0, **options})
    trials = [module.trial for module in network.modules() if isinstance(module, DRConv2d)]
    assert trials == [RoutingTrial(**options) if options else None] * 2
