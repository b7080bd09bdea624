"""CondConv (Yang et al., 2019), the first rival of Table 1: one filter per image, mixed from experts.

Shape letters: B batch, C in, O out, E experts, K kernel.
"""

import math

import torch
from torch import Tensor, nn

from drconv.nn.filter_bank import FilterBank
from drconv.nn.kernels.geometry import Pair
from drconv.nn.options import channels, positive, window
from drconv.nn.per_sample import convolve_per_sample
from drconv.nn.precision import at_least_float32, without_autocast
from drconv.nn.shared import SharedSequential


class Routing(nn.Linear):
    """Weight of every expert for every image: sigmoid of a linear layer on the globally averaged input.

    The weights are not normalised, as in the TensorFlow original. They are computed in fp32 at least.
    """

    def __init__(
        self,
        in_channels: int,
        experts: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, experts, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        bound = 1 / math.sqrt(self.in_features + self.out_features)
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map features (B, C, H, W) to routing weights (B, E) between 0 and 1; (C, H, W) to (E,)."""
        with without_autocast(x):
            pooled = at_least_float32(x).mean((-2, -1))
            logits = nn.functional.linear(pooled, self.weight.to(pooled.dtype), self.bias.to(pooled.dtype))
        return logits.sigmoid()


class CondConv2d(FilterBank):
    """Convolution whose filter is a weighted sum of experts, with weights computed from the image.

    ``y = conv(x)`` uses its own routing; ``y = conv(x, weights)`` uses routing weights (B, E) that several
    convolutions share, as those of a block do in the original. Each expert starts like an independent
    ``nn.Conv2d``.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: K.
        stride: as in ``nn.Conv2d``.
        padding: zeros added on either side.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
        bias: one bias per expert and output channel, mixed like the filters.
        experts: number of filters E that are mixed.
        routing: ``own``, or ``shared``, which needs the weights in the call.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: an option is unknown or out of its range, or ``groups`` does not divide the channel counts.
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
        experts: int = 8,
        routing: str = "own",
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels, groups = channels(in_channels, out_channels, groups)
        if routing not in ("own", "shared"):
            raise ValueError(f"routing={routing!r} is not known; use 'own' or 'shared'")
        experts = positive("experts", experts)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = window(kernel_size, stride, padding, dilation)
        self.experts = experts
        shape = (experts, out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        empty_bias = torch.empty(experts, out_channels, device=device, dtype=dtype) if bias else None
        self.bias = None if empty_bias is None else nn.Parameter(empty_bias)
        self.routing = Routing(in_channels, experts, device, dtype) if routing == "own" else None
        self.reset_parameters()

    def reset_parameters(self, std: float | None = None) -> None:
        """Start every expert like an independent convolution.

        Args:
            std: standard deviation of the filters; None for that of ``nn.Conv2d``.
        """
        fan_in = self.weight[0, 0].numel()
        bound = fan_in**-0.5 if std is None else 3**0.5 * std
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)
        if self.routing is not None:
            self.routing.reset_parameters()

    @torch.no_grad()
    def load_filter(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Start from a convolution's filter: the routing starts at one half, where the mixture equals it.

        The experts differ by noise, a tenth of the filter, that sums to zero; without it they would receive equal
        gradients for ever. A shared routing is made to start so with ``zero_routing``.

        Args:
            weight: (O, C/groups, K, K).
            bias: (O,) or None for 0.
        """
        noise = 0.1 * weight.square().mean().sqrt() * torch.randn_like(self.weight)
        self.weight.copy_((weight + noise - noise.mean(0)) * (2 / self.experts))
        self.load_bias(bias)
        if self.routing is not None:
            zero_routing(self.routing)

    @torch.no_grad()
    def load_bias(self, bias: Tensor | None) -> None:
        """Make the mixed bias (O,) the given one, or 0, for routing weights of one half."""
        if self.bias is not None:
            self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias * (2 / self.experts))

    def forward(self, x: Tensor, routing: Tensor | None = None) -> Tensor:
        """Convolve ``x`` (B, C, H, W), with routing weights (B, E) if they are shared; or (C, H, W), with (E,).

        Raises:
            RuntimeError: no routing is given and the layer has none of its own.
        """
        if x.dim() == 3:
            weights = routing.unsqueeze(0) if routing is not None and routing.dim() == 1 else routing
            return CondConv2d.forward(self, x.unsqueeze(0), weights)[0]
        if routing is None:
            if self.routing is None:
                raise RuntimeError("CondConv2d was built with routing='shared': call conv(x, routing_weights)")
            routing = self.routing(x)
        with without_autocast(x):
            weight = torch.mm(routing, self.weight.flatten(1).to(routing.dtype))
            weight = weight.unflatten(1, self.weight.shape[1:])
            bias = None if self.bias is None else torch.mm(routing, self.bias.to(routing.dtype))
        return convolve_per_sample(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    @property
    def takes_routing(self) -> bool:
        """Whether the routing weights come from outside."""
        return self.routing is None

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, experts={self.experts}"
        )


class RoutedSequential(SharedSequential):
    """A sequence whose CondConvs share one routing, computed once on its input, as in the TensorFlow original."""

    name = "routing"


@torch.no_grad()
def zero_routing(routing: Routing) -> None:
    """Make every routing weight one half, whatever the image."""
    routing.weight.zero_()
    routing.bias.zero_()
