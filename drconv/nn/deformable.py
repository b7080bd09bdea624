"""Deformable Kernels (Gao et al., 2020), the rival DK-MobileNetV2 of Table 1: taps move, not pixels.

A filter is sampled, bilinearly, from a larger plane of learned cells, its scope. Shape letters: B batch, C
in, O out, K kernel, S scope, T = K * K taps, P output positions.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drconv.nn.kernels.geometry import Pair
from drconv.nn.options import channels, positive, window
from drconv.nn.per_sample import convolve_per_sample
from drconv.nn.precision import at_least_float32, autocast_dtype, without_autocast


class DeformableKernelConv2d(nn.Module):
    """Convolution whose filter is sampled from a scope at coordinates that depend on the input.

    Depthwise convolutions with K > 1 are *local*: a dense K x K convolution of the input moves each tap at
    each output position (cells outside the scope are zero). All others are *global*: a linear layer on the
    globally averaged input moves each tap, once per image, within the scope. All offsets start at zero, where
    every tap sits at the same distance from its neighbouring cells. Offsets and coordinates are computed in
    fp32 at least.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: K.
        stride: as in ``nn.Conv2d``.
        padding: zeros added on either side.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: as in ``nn.Conv2d``.
        scope: side S of the plane of cells; None for K + 1, the paper's 2 x 2 and 4 x 4.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an option is out of its range, ``groups`` does not divide the channel counts, the kernel is not
            square, or the scope is smaller than it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        scope: int | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding, self.dilation = window(kernel_size, stride, padding, dilation)
        in_channels, out_channels, groups = channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.scope = self.kernel_size[0] + 1 if scope is None else positive("scope", scope)
        self._check()
        self.is_local = groups == in_channels == out_channels and self.kernel_size[0] > 1
        shape = (out_channels, in_channels // groups, self.scope, self.scope)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        empty_bias = torch.empty(out_channels, device=device, dtype=dtype) if bias else None
        self.bias = None if empty_bias is None else nn.Parameter(empty_bias)
        self.offset = self._make_offset(device, dtype)
        self.reset_parameters()

    def _check(self) -> None:
        if self.kernel_size[0] != self.kernel_size[1]:
            raise ValueError(f"kernel_size={self.kernel_size} is not square; deformable kernels need a square one")
        if self.scope < self.kernel_size[0]:
            raise ValueError(f"scope={self.scope} must be at least the kernel size, {self.kernel_size[0]}")

    def _make_offset(self, device: torch.device | None, dtype: torch.dtype | None) -> "LinearOffset | ConvOffset":
        num_offsets = 2 * self.kernel_size[0] ** 2
        if not self.is_local:
            return LinearOffset(self.in_channels, num_offsets, device=device, dtype=dtype)
        return ConvOffset(
            self.in_channels,
            num_offsets,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            device=device,
            dtype=dtype,
        )

    def reset_parameters(self, std: float | None = None) -> None:
        """Start like an ``nn.Conv2d``, with offsets of zero and cells that differ as much as the filter's
        entries.

        Args:
            std: standard deviation of the filter; None for that of ``nn.Conv2d``.
        """
        shape = (self.out_channels, self.in_channels // self.groups, *self.kernel_size)
        fan_in = math.prod(shape[1:])
        bound = fan_in**-0.5 if std is None else 3**0.5 * std
        filters = torch.empty(shape, device=self.weight.device, dtype=self.weight.dtype)
        self._load_cells(filters.uniform_(-bound, bound), noise=1.0)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    @torch.no_grad()
    def load_filter(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Start as a convolution with this filter (O, C/groups, K, K) and bias (O,) or 0."""
        self._load_cells(weight, noise=0.1)
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)

    @torch.no_grad()
    def _load_cells(self, weight: Tensor, noise: float) -> None:
        """Make the filter sampled at offsets of zero equal ``weight``.

        The cells are the smallest that do so, plus noise, as a share of the filter's size, that the sampling
        cancels; without it all cells of a 2 x 2 scope would be alike and the offsets would never get a
        gradient.
        """
        hats = self._hats(self._base_coordinates()[: self.kernel_size[0], 1])  # K, S: samples along one axis
        inverse = torch.linalg.pinv(hats.double()).to(weight)
        hats = hats.to(weight)
        moved = torch.randn_like(self.weight) * weight.square().mean().sqrt() * noise
        self.weight.copy_(inverse @ (weight - hats @ moved @ hats.T) @ inverse.T + moved)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (B, C, H, W) or (C, H, W)."""
        if x.dim() == 3:
            return DeformableKernelConv2d.forward(self, x.unsqueeze(0))[0]
        y = self._forward_local(x) if self.is_local else self._forward_global(x)
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def _forward_global(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            offset = self.offset(x).unflatten(1, (-1, 2))  # B, T, 2
            coordinates = (self._base_coordinates().to(offset) + offset).clamp(0, self.scope - 1)
            hats = self._hats(coordinates)  # B, T, 2, S
            cells = (hats[:, :, 0, :, None] * hats[:, :, 1, None, :]).flatten(2)  # B, T, S * S
            weight = self.weight.flatten(2).to(cells.dtype)  # O, C/G, S * S
            filters = torch.matmul(weight.flatten(0, 1), cells.transpose(1, 2))  # B, O * C/G, T
            filters = filters.unflatten(1, weight.shape[:2]).unflatten(3, self.kernel_size)
        return convolve_per_sample(x, filters, None, self.stride, self.padding, self.dilation, self.groups)

    def _forward_local(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            offset = self.offset(x).unflatten(1, (-1, 2))  # B, T, 2, H', W'
            height, width = offset.shape[3:]
            base = self._base_coordinates().to(offset)[:, :, None, None]
            cells = self.weight.flatten(1).to(offset.dtype)  # C, S * S
            padded = F.pad(at_least_float32(x), (self.padding[1],) * 2 + (self.padding[0],) * 2)
            y = padded.new_zeros(x.shape[0], self.out_channels, height, width)
            for tap in range(offset.shape[1]):
                hats = self._hats(base[tap] + offset[:, tap])  # B, 2, H', W', S
                shares = hats[:, 0, :, :, :, None] * hats[:, 1, :, :, None, :]  # B, H', W', S, S
                values = F.linear(shares.flatten(3), cells).permute(0, 3, 1, 2)  # B, C, H', W'
                y = y + values * self._shifted(padded, tap, height, width)
        return y.to(autocast_dtype(x) or x.dtype)

    def _shifted(self, padded: Tensor, tap: int, height: int, width: int) -> Tensor:
        row, column = (
            index * step for index, step in zip(divmod(tap, self.kernel_size[1]), self.dilation, strict=True)
        )
        rows = slice(row, row + (height - 1) * self.stride[0] + 1, self.stride[0])
        columns = slice(column, column + (width - 1) * self.stride[1] + 1, self.stride[1])
        return padded[:, :, rows, columns]

    def _base_coordinates(self) -> Tensor:
        """Coordinates of the taps in the scope without offsets, (T, 2): row, column."""
        axis = torch.arange(self.kernel_size[0], device=self.weight.device) + (self.scope - self.kernel_size[0]) / 2
        return torch.cartesian_prod(axis, axis)

    def _hats(self, coordinates: Tensor) -> Tensor:
        """Bilinear share of each of the S cells of an axis; adds a last dimension."""
        cells = torch.arange(self.scope, device=coordinates.device)
        return F.relu(1 - (coordinates.unsqueeze(-1) - cells).abs())

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, scope={self.scope}"
        )


class LinearOffset(nn.Linear):
    """Offsets (B, 2 T) of the taps of one image, from its globally averaged features."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = at_least_float32(x).mean((2, 3))
        return F.linear(pooled, self.weight.to(pooled.dtype), self.bias.to(pooled.dtype))


class ConvOffset(nn.Conv2d):
    """Offsets (B, 2 T, H', W') of the taps at every output position."""

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self._conv_forward(x, self.weight.to(x.dtype), bias)
