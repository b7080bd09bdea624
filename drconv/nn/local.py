"""Local convolution (Eq. 2): another filter at every output position, the same for all images.

Shape letters: B batch, C in, O out, K kernel, P output positions, G groups.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drconv.nn.kernels.geometry import Pair, pair
from drconv.nn.options import channels, window


class LocalConv2d(nn.Module):
    """Convolution with unshared filters; the input size is fixed when the layer is built.

    It has P times a convolution's parameters and the same multiply-adds. The bias is one per output channel,
    as in ``nn.Conv2d``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: K.
        stride: as in ``nn.Conv2d``.
        padding: zeros added on either side.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: as in ``nn.Conv2d``.
        input_size: rows and columns of the input, in pixels.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an option is out of its range, ``groups`` does not divide the channel counts, or the input is
            smaller than the kernel.
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
        input_size: int | Pair,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels, groups = channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = window(kernel_size, stride, padding, dilation)
        self.input_size = pair(input_size)
        self.output_size = tuple(self._output_length(axis) for axis in range(2))
        if min(self.output_size) < 1:
            raise ValueError(
                f"input_size={self.input_size} is smaller than the kernel (kernel_size={self.kernel_size}, "
                f"dilation={self.dilation}, padding={self.padding})"
            )
        shape = (*self.output_size, out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        empty_bias = torch.empty(out_channels, device=device, dtype=dtype) if bias else None
        self.bias = None if empty_bias is None else nn.Parameter(empty_bias)
        self.reset_parameters()

    def _output_length(self, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        return (self.input_size[axis] + 2 * self.padding[axis] - reach - 1) // self.stride[axis] + 1

    def reset_parameters(self, std: float | None = None) -> None:
        """Draw the filter of every position independently.

        Args:
            std: standard deviation of the filters; None for that of ``nn.Conv2d``.
        """
        fan_in = self.weight[0, 0, 0].numel()
        bound = fan_in**-0.5 if std is None else 3**0.5 * std
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)

    @torch.no_grad()
    def load_filter(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Start as a convolution: its filter (O, C/groups, K, K) at every position, its bias (O,) or 0."""
        self.weight.copy_(weight.expand_as(self.weight))
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (B, C, H, W) or (C, H, W).

        Raises:
            ValueError: H, W is not ``input_size``.
        """
        if x.dim() == 3:
            return LocalConv2d.forward(self, x.unsqueeze(0))[0]
        if tuple(x.shape[2:]) != self.input_size:
            raise ValueError(
                f"LocalConv2d was built for input_size={self.input_size} and got {tuple(x.shape[2:])}: "
                "its filters belong to positions; build it for the size it is used with"
            )
        num_positions = math.prod(self.output_size)
        patches = self._patches(x).unflatten(1, (self.groups, -1))  # B, G, C/G * K * K, P
        patches = patches.permute(3, 1, 0, 2).flatten(0, 1)  # P * G, B, C/G * K * K
        filters = self.weight.flatten(0, 1).flatten(2).unflatten(1, (self.groups, -1)).flatten(0, 1)
        y = torch.bmm(patches, filters.transpose(1, 2))  # P * G, B, O/G
        y = y.unflatten(0, (num_positions, self.groups)).permute(2, 1, 3, 0).flatten(1, 2)
        y = y.unflatten(2, self.output_size)
        return y if self.bias is None else y + self.bias[:, None, None].to(y.dtype)

    def _patches(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1, 1) and self.padding == (0, 0):
            return x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)
        return F.unfold(x, self.kernel_size, self.dilation, self.padding, self.stride)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, input_size={self.input_size}"
        )
