"""CondConv against timm's layer and against a mixture written out."""

import copy
import pickle

import pytest
import torch
from timm.layers import CondConv2d as TimmCondConv2d
from torch import Tensor, nn
from torch.nn import functional as F

from drconv.nn.condconv import CondConv2d, RoutedSequential, Routing

CASES = [
    # in, out, kernel, stride, padding, dilation, groups
    (6, 8, 1, 1, 0, 1, 1),
    (6, 8, 1, 2, 0, 1, 1),
    (6, 8, 1, 1, 1, 1, 1),
    (6, 8, 1, 1, 0, 1, 2),
    (6, 8, 3, 2, 1, 1, 1),
    (6, 6, 3, 1, 2, 2, 6),
    (4, 8, (3, 1), (1, 2), (1, 0), 1, 2),
]


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", [False, True])
def test_agrees_with_timm(case: tuple, bias: bool) -> None:
    torch.manual_seed(0)
    in_channels, out_channels, kernel, stride, padding, dilation, groups = case
    ours = CondConv2d(*case, bias=bias, experts=3, routing="shared", dtype=torch.float64)
    theirs = TimmCondConv2d(
        in_channels, out_channels, kernel, stride, padding, dilation, groups, bias, num_experts=3, dtype=torch.float64
    )
    theirs.padding = ours.padding  # timm reads a pair as the padding of a string
    theirs.load_state_dict({name: value.reshape(3, -1) for name, value in ours.state_dict().items()})
    x, routing = _random(4, in_channels, 9, 7).requires_grad_(), torch.rand(4, 3, dtype=torch.float64)
    routing.requires_grad_()
    results = [layer(x, routing) for layer in (ours, theirs)]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(y.square().sum(), (x, routing)) for y in results]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_own_routing_is_the_sigmoid_of_a_linear_layer_on_the_pooled_input() -> None:
    torch.manual_seed(0)
    conv = CondConv2d(5, 7, 3, padding=1, experts=4).double()
    x = _random(3, 5, 6, 6)
    weights = torch.sigmoid(x.mean((2, 3)) @ conv.routing.weight.T + conv.routing.bias)
    for image, expected_weights, y in zip(x, weights, conv(x), strict=True):
        mixed = sum(share * expert for share, expert in zip(expected_weights, conv.weight, strict=True))
        bias = sum(share * expert for share, expert in zip(expected_weights, conv.bias, strict=True))
        torch.testing.assert_close(y, F.conv2d(image[None], mixed, bias, padding=1)[0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_formats_autocast_and_empty_batches(case: tuple, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = CondConv2d(*case, experts=3)
    x = torch.randn(2, case[0], 8, 8)
    expected = conv(x)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        y = conv(x.contiguous(memory_format=torch.channels_last))
        assert conv(x[:0]).shape == (0, *expected.shape[1:])
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05 if dtype != torch.float32 else 1e-5)
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_1x1_keeps_channels_last() -> None:
    x = torch.randn(2, 6, 5, 4).contiguous(memory_format=torch.channels_last)
    assert CondConv2d(6, 8, 1)(x).is_contiguous(memory_format=torch.channels_last)


def test_experts_start_as_independent_convolutions() -> None:
    torch.manual_seed(0)
    conv, plain = CondConv2d(64, 64, 3), nn.Conv2d(64, 64, 3)
    for expert in conv.weight:
        torch.testing.assert_close(expert.std(), plain.weight.std(), rtol=0.02, atol=0)
    similarity = torch.corrcoef(conv.weight.flatten(1)).fill_diagonal_(0)
    assert similarity.abs().max() < 0.03


def test_starts_as_the_convolution_it_replaces_and_experts_part() -> None:
    torch.manual_seed(0)
    plain, conv = nn.Conv2d(6, 8, 3), CondConv2d(6, 8, 3)
    x = torch.randn(3, 6, 8, 8)
    conv.load_filter(plain.weight, plain.bias)
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)
    conv(x).square().sum().backward()
    gradients = conv.routing.weight.grad
    assert (gradients - gradients[0]).abs().max() > 1e-3, "experts that are alike can never become different"


def test_routed_sequential_shares_one_routing() -> None:
    torch.manual_seed(0)
    first, second = (CondConv2d(4, 4, 1, experts=3, routing="shared") for _ in range(2))
    plain = nn.Sequential(first, nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(), second))
    block = RoutedSequential(plain, Routing(4, 3))
    assert set(block.state_dict()) == {*plain.state_dict(), "routing.weight", "routing.bias"}
    assert len(block) == 3
    assert list(block) == list(plain)
    x = torch.randn(2, 4, 6, 6)
    block.eval()
    weights = block.routing(x)
    expected = second(plain[1](first(x, weights)).relu(), weights)
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(pickle.loads(pickle.dumps(copy.deepcopy(block)))(x), expected)


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="groups=3 must divide"):
        CondConv2d(4, 6, 1, groups=3)
    with pytest.raises(ValueError, match="routing='block'"):
        CondConv2d(4, 6, 1, routing="block")
    with pytest.raises(RuntimeError, match=r"conv\(x, routing_weights\)"):
        CondConv2d(4, 6, 1, routing="shared")(torch.randn(1, 4, 2, 2))
