"""Deformable kernels against a loop that samples one filter at a time."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drconv.nn.deformable import DeformableKernelConv2d


def _sample(plane: Tensor, row: float, column: float) -> Tensor:
    """Bilinear value of ``plane`` (..., S, S) at a coordinate; zero beyond its cells."""
    grid = torch.tensor([column, row], dtype=plane.dtype) * 2 / (plane.shape[-1] - 1) - 1
    planes = plane.reshape(1, -1, *plane.shape[-2:])
    value = F.grid_sample(planes, grid.view(1, 1, 1, 2), align_corners=True, padding_mode="zeros")
    return value.reshape(plane.shape[:-2])


def _global_loop(conv: DeformableKernelConv2d, x: Tensor) -> Tensor:
    size = conv.kernel_size[0]
    results = []
    for image in x:
        moves = (image.mean((1, 2)) @ conv.offset.weight.T + conv.offset.bias).detach()
        filters = torch.empty(*conv.weight.shape[:2], size, size, dtype=x.dtype)
        for tap in range(size * size):
            base = [index + (conv.scope - size) / 2 for index in divmod(tap, size)]
            where = [min(max(base[axis] + float(moves[2 * tap + axis]), 0.0), conv.scope - 1.0) for axis in range(2)]
            filters[:, :, tap // size, tap % size] = _sample(conv.weight, *where)
        results.append(F.conv2d(image[None], filters, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups))
    return torch.cat(results)


def _local_loop(conv: DeformableKernelConv2d, x: Tensor) -> Tensor:
    moves = F.conv2d(
        x, conv.offset.weight.detach(), conv.offset.bias.detach(), conv.stride, conv.padding, conv.dilation
    )
    size, padded = conv.kernel_size[0], F.pad(x, (conv.padding[1],) * 2 + (conv.padding[0],) * 2)
    y = x.new_zeros(x.shape[0], conv.out_channels, *moves.shape[2:])
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (len(x), *moves.shape[2:]))).tolist():
        for tap in range(size * size):
            row, column = divmod(tap, size)
            where = [
                index + (conv.scope - size) / 2 + float(moves[b, 2 * tap + axis, i, j])
                for axis, index in enumerate((row, column))
            ]
            pixel = padded[
                b, :, i * conv.stride[0] + row * conv.dilation[0], j * conv.stride[1] + column * conv.dilation[1]
            ]
            y[b, :, i, j] += _sample(conv.weight[:, 0], *where) * pixel
    return y if conv.bias is None else y + conv.bias[:, None, None]


def _with_offsets(conv: DeformableKernelConv2d, spread: float) -> DeformableKernelConv2d:
    with torch.no_grad():
        conv.offset.weight.normal_(std=spread)
        conv.offset.bias.normal_(std=spread)
    return conv


@pytest.mark.parametrize(
    "case",
    [(6, 8, 1), (6, 8, 1, 2), (6, 8, 1, 1, 0, 1, 2), (4, 6, 3, 2, 1), (4, 8, 3, 1, 1, 1, 4)],
)
@pytest.mark.parametrize("scope", [None, 4])
def test_global_kernels_agree_with_a_loop(case: tuple, scope: int | None) -> None:
    torch.manual_seed(0)
    conv = _with_offsets(DeformableKernelConv2d(*case, scope=scope, dtype=torch.float64), 1.0)
    assert not conv.is_local
    x = torch.randn(4, case[0], 6, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x), _global_loop(conv, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [(4, 4, 3, 1, 1, 1, 4), (4, 4, 3, 2, 1, 1, 4), (4, 4, 3, (2, 1), (2, 1), 2, 4, False)])
@pytest.mark.parametrize("scope", [None, 6])
def test_local_kernels_agree_with_a_loop(case: tuple, scope: int | None) -> None:
    torch.manual_seed(0)
    conv = _with_offsets(DeformableKernelConv2d(*case, scope=scope, dtype=torch.float64), 0.5)
    assert conv.is_local
    x = torch.randn(2, 4, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(conv(x), _local_loop(conv, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [(6, 8, 1), (6, 6, 3, 1, 1, 1, 6), (6, 8, 3, 2, 1, 1, 2)])
def test_starts_as_the_convolution_it_replaces_and_can_move(case: tuple) -> None:
    torch.manual_seed(0)
    plain, conv = nn.Conv2d(*case), DeformableKernelConv2d(*case)
    conv.load_filter(plain.weight, plain.bias)
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(conv(x), plain(x), rtol=1e-5, atol=1e-5)
    conv.reset_parameters()
    conv(x).square().sum().backward()
    assert conv.offset.bias.grad.abs().min() > 0


@pytest.mark.parametrize("case", [(6, 8, 1), (6, 6, 3, 1, 1, 1, 6)])
def test_autocast_half_precision_and_channels_last(case: tuple) -> None:
    torch.manual_seed(0)
    conv = _with_offsets(DeformableKernelConv2d(*case), 0.3)
    x = torch.randn(2, 6, 8, 8)
    expected = conv(x)
    torch.testing.assert_close(conv(x.contiguous(memory_format=torch.channels_last)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(conv(x).float(), expected, rtol=0.05, atol=0.05)
    assert conv(x[:0]).shape == (0, *expected.shape[1:])
    assert conv.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_errors_say_what_to_change() -> None:
    with pytest.raises(ValueError, match="not square"):
        DeformableKernelConv2d(4, 4, (3, 1))
    with pytest.raises(ValueError, match="scope=2"):
        DeformableKernelConv2d(4, 4, 3, scope=2)
    with pytest.raises(ValueError, match="groups=3"):
        DeformableKernelConv2d(4, 4, 3, groups=3)
