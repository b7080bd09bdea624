"""Local convolution against a loop over output positions."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn import functional as F

from drconv.nn.local import LocalConv2d


def _loop(conv: LocalConv2d, x: Tensor) -> Tensor:
    """Eq. 2, one output position at a time."""
    padded = F.pad(x, (conv.padding[1],) * 2 + (conv.padding[0],) * 2)
    y = x.new_zeros(x.shape[0], conv.out_channels, *conv.output_size)
    for i in range(conv.output_size[0]):
        for j in range(conv.output_size[1]):
            rows = [i * conv.stride[0] + a * conv.dilation[0] for a in range(conv.kernel_size[0])]
            columns = [j * conv.stride[1] + b * conv.dilation[1] for b in range(conv.kernel_size[1])]
            patch = padded[:, :, rows][:, :, :, columns]
            y[:, :, i, j] = F.conv2d(patch, conv.weight[i, j], conv.bias, groups=conv.groups)[:, :, 0, 0]
    return y


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_agrees_with_a_loop_over_positions(data: st.DataObject) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    kernel, size = (draw(1, 3), draw(1, 3)), (draw(5, 8), draw(5, 8))
    groups = draw(1, 3)
    conv = LocalConv2d(
        groups * draw(1, 3),
        groups * draw(1, 3),
        kernel,
        (draw(1, 2), draw(1, 2)),
        (draw(0, 1), draw(0, 1)),
        draw(1, 2),
        groups,
        bias=data.draw(st.booleans()),
        input_size=size,
        dtype=torch.float64,
    )
    x = torch.randn(draw(0, 2), conv.in_channels, *size, dtype=torch.float64)
    torch.testing.assert_close(conv(x), _loop(conv, x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_starts_as_the_convolution_it_replaces(kernel: int) -> None:
    plain = nn.Conv2d(6, 8, kernel, 2, kernel // 2, groups=2)
    conv = LocalConv2d(6, 8, kernel, 2, kernel // 2, groups=2, input_size=9)
    conv.load_filter(plain.weight, plain.bias)
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)


def test_positions_learn_separately() -> None:
    conv = LocalConv2d(2, 3, 1, input_size=4)
    conv(torch.randn(1, 2, 4, 4))[:, :, 1, 2].sum().backward()
    touched = conv.weight.grad.flatten(2).abs().sum(-1) > 0
    assert touched.nonzero().tolist() == [[1, 2]]


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match=r"input_size=\(4, 4\) and got \(5, 4\)"):
        LocalConv2d(2, 3, 1, input_size=4)(torch.randn(1, 2, 5, 4))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        LocalConv2d(2, 3, 5, input_size=4)
    with pytest.raises(ValueError, match="groups=2 must divide"):
        LocalConv2d(2, 3, 1, groups=2, input_size=4)
