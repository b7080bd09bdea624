"""Filter generators against their definitions."""

import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from drconv.nn import DRConv2d
from drconv.nn.generators import PooledGate, grouped_filters, mix_experts, pool_average, remake_in_backward


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 12), width=st.integers(1, 12), rows=st.integers(1, 5), columns=st.integers(1, 5))
def test_pooling_is_adaptive_average_pooling(height: int, width: int, rows: int, columns: int) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    torch.testing.assert_close(pool_average(x, (rows, columns)), F.adaptive_avg_pool2d(x, (rows, columns)))


def _paper_filters(conv: DRConv2d, x: torch.Tensor) -> torch.Tensor:
    """Section 3.2 with torch's own layers: pooling, 1x1, sigmoid, 1x1 with groups = m; for 1x1 windows."""
    gate = conv.generator
    first = F.conv2d(F.adaptive_avg_pool2d(x, 1), gate.weight[:, :, None, None], gate.bias).sigmoid()
    units = gate.weight.shape[0] // conv.regions
    second = conv.weight.flatten(1).unflatten(0, (conv.regions, units)).transpose(1, 2).flatten(0, 1)
    bias = None if conv.filter_bias is None else conv.filter_bias.flatten()
    filters = F.conv2d(first, second[:, :, None, None], bias, groups=conv.regions)
    return filters.view(x.shape[0], conv.regions, *conv.weight.shape[1:])


@pytest.mark.parametrize("hidden", [3, 12])
@pytest.mark.parametrize("bias", [False, True])
def test_grouped_is_the_papers_two_layers(hidden: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = DRConv2d(4, 6, 1, groups=2, regions=3, hidden=hidden, generator_bias=bias, bias=False).double()
    x = torch.randn(2, 4, 5, 7, dtype=torch.float64)
    for parameter in conv.parameters():
        nn.init.normal_(parameter)
    filters = _paper_filters(conv, x)
    logits = conv.guide(x)
    candidates = torch.stack([F.conv2d(x[[b]], filters[b, r], groups=2)[0] for b in range(2) for r in range(3)])
    chosen = F.one_hot(logits.argmax(1), 3).permute(0, 3, 1, 2).unsqueeze(2)
    expected = (candidates.view(2, 3, 6, 5, 7) * chosen).sum(1)
    torch.testing.assert_close(conv(x), expected)


def test_one_scale_per_tap() -> None:
    gate = PooledGate(4, 8, (3, 3), 1.0)
    x = torch.randn(2, 4, 9, 6)
    expected = F.conv2d(F.adaptive_avg_pool2d(x, 3), gate.weight[:, :, None, None], gate.bias).sigmoid()
    torch.testing.assert_close(gate(x), expected)
    weight = torch.randn(8, 5, 4, 3, 3)
    filters = grouped_filters(weight, expected, None, 8)
    torch.testing.assert_close(filters[1, 2, :, :, 0, 2], expected[1, 2, 0, 2] * weight[2, :, :, 0, 2])


def test_experts_are_the_released_mixture() -> None:
    """routing = 2 sigmoid(fc(pool(x))) / E viewed (N m, E); filters = routing @ experts."""
    gate = PooledGate(4, 3 * 5, (1, 1), 2 / 5)
    nn.init.normal_(gate.weight)
    x, experts = torch.randn(2, 4, 6, 6), torch.randn(5, 6, 4, 1, 1)
    routing = 2 * torch.sigmoid(F.linear(x.mean((2, 3)), gate.weight, gate.bias)) / 5
    filters = mix_experts(experts, gate(x))
    assert filters.shape == (2, 3, 6, 4, 1, 1)
    for b in range(2):
        for r in range(3):
            expected = sum(routing[b, r * 5 + e] * experts[e] for e in range(5))
            torch.testing.assert_close(filters[b, r], expected)


def test_gate_stays_in_fp32_under_autocast() -> None:
    gate = PooledGate(64, 8, (1, 1), 1.0)
    x = torch.randn(2, 64, 5, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gate(x), gate(x.clone()))
        assert gate(x).dtype == torch.float32
    torch.testing.assert_close(gate(x), F.linear(x.mean((2, 3)), gate.weight, gate.bias).sigmoid())


@pytest.mark.parametrize("options", [{"generator": "experts"}, {"generator_bias": True}])
@pytest.mark.parametrize("autocast", [False, True])
def test_filters_are_not_kept_for_backward(options: dict, autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is alive between forward and backward is far smaller than the filters; the gradients are the same."""
    conv = DRConv2d(32, 32, 1, bias=False, **options)
    x = torch.randn(16, 32, 2, 2)
    gradients = []
    for remade in (True, False):
        if not remade:
            monkeypatch.setattr("drconv.nn.conv.remake_in_backward", lambda *_: torch.autograd.graph.save_on_cpu())
        before = _alive()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = conv(x)
        kept = _alive() - before
        filters = 16 * 8 * 32 * 32
        assert (kept < filters / 2) == remade
        gradients.append(torch.autograd.grad(y.float().square().sum(), list(conv.parameters())))
        del y
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def _alive() -> int:
    """Numbers held by live tensors."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) is torch.Tensor and thing.device.type == "cpu":
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes() // thing.element_size()
    return sum(storages.values())


def test_remake_calls_make_once_per_use() -> None:
    calls = []
    bank = torch.randn(3, requires_grad=True)

    def make() -> torch.Tensor:
        calls.append(1)
        return bank * 2

    filters = make()
    with remake_in_backward(filters, make, (bank,)):
        y = (filters * torch.ones(3, requires_grad=True)).sum()
    assert len(calls) == 1
    y.backward()
    assert len(calls) == 2
    assert torch.equal(bank.grad, torch.full((3,), 2.0))


@pytest.mark.parametrize("options", [{"generator": "experts"}, {"generator_bias": True}, {}])
@pytest.mark.parametrize("is_plain", [False, True])
def test_filters_changed_before_backward_are_noticed(options: dict, is_plain: bool) -> None:
    """As nn.Conv2d does; a new parameter in their place is none of backward's business."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, 1) if is_plain else DRConv2d(3, 4, 1, **options)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        layer.weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        y.sum().backward()
    y, kept = layer(x), layer.weight
    layer.weight = nn.Parameter(torch.zeros_like(kept))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.any()
