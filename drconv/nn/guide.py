"""The guide: which filter a position uses (section 3.1 of the paper, decisions D2 and D11)."""

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drconv.nn.gradients import scale_gradient
from drconv.nn.inference import run_guided
from drconv.nn.kernels.geometry import Pair
from drconv.nn.kernels.sharing import shared
from drconv.nn.options import positive, window, within
from drconv.nn.plain import standard
from drconv.nn.precision import at_least_float32
from drconv.nn.shared import SharedSequential

NORMS = ("none", "batch", "scale")


@standard
class Guide(nn.Module):
    """A bias-free convolution to M logits per position; the operator takes their arg max.

    Two factors act in the backward pass only: ``gradient`` on the gradient of the logits, and so on all that comes of
    it, and ``feature_gradient`` on the part of that which flows on into the input.

    Args:
        in_channels: C.
        regions: M.
        kernel_size: 1 for a guide shared by a block, the convolution's own for a DRConv with its own guide.
        stride: as in ``nn.Conv2d``.
        padding: as there.
        dilation: as there.
        norm: "none", as printed; "scale" for one scale common to all logits (``LogitScale``); "batch" for a batch norm
            without affine, which asks every region to win equally often.
        gradient: factor on the logits' gradient (the released code's beta); 1 as printed.
        feature_gradient: factor on the part that reaches the input; 0 cuts it off.
        frozen: the filter stays at its random start.

    Raises:
        ValueError: an option is unknown or out of its range.
    """

    def __init__(
        self,
        in_channels: int,
        regions: int,
        kernel_size: int | Pair = 1,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        *,
        norm: str = "none",
        gradient: float = 1.0,
        feature_gradient: float = 1.0,
        frozen: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"guide_norm={norm!r} is unknown; use one of {', '.join(NORMS)}")
        in_channels, regions = positive("in_channels", in_channels), positive("regions", regions)
        size, self.stride, self.padding, self.dilation = window(kernel_size, stride, padding, dilation)
        gradient = within("guide_gradient", gradient, 0)
        feature_gradient = within("feature_gradient", feature_gradient, 0)
        self.gradient, self.feature_gradient = gradient, feature_gradient
        self.keep_logits = False
        self.logits: Tensor | None = None
        weight = torch.empty(regions, in_channels, *size, device=device, dtype=dtype)
        self.weight = nn.Parameter(weight, requires_grad=not frozen)
        precise = None if dtype is None else torch.promote_types(dtype, torch.float32)
        self.norm: LogitNorm | LogitScale | None = None
        if norm == "batch":
            self.norm = LogitNorm(regions, affine=False, device=device, dtype=precise)
        elif norm == "scale":
            self.norm = LogitScale(device=device, dtype=precise)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As ``nn.Conv2d``: uniform within 1/sqrt(fan-in)."""
        bound = self.weight[0].numel() ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.norm is not None:
            self.norm.reset_running_stats()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to logits (B, M, H', W'), at least fp32; (C, H, W) to (M, H', W')."""
        if x.dim() == 3:
            return Guide.forward(self, x.unsqueeze(0))[0]
        if self.feature_gradient != 1:
            x = x.detach() if self.feature_gradient == 0 else scale_gradient(x, self.feature_gradient)
        logits = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation)
        if logits.dtype != torch.float64:
            logits = logits.float()
        if self.norm is not None:
            logits = self.norm(logits)
        if self.keep_logits and self.training:
            self.logits = logits
        if self.gradient != 1:
            logits = scale_gradient(logits, self.gradient)
        return logits

    def __getstate__(self) -> dict[str, Any]:
        """Without the kept logits, which belong to one forward pass (and cannot be copied)."""
        return {**self.__dict__, "logits": None}

    @property
    def is_pointwise(self) -> bool:
        """Whether each position's logits come from the pixel there alone."""
        return self.weight.shape[2:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)

    def extra_repr(self) -> str:
        regions, channels, *size = self.weight.shape
        text = f"{channels}, {regions}, kernel_size={tuple(size)}, stride={self.stride}"
        if self.gradient != 1 or self.feature_gradient != 1:
            text += f", gradient={self.gradient:g}, feature_gradient={self.feature_gradient:g}"
        return text if self.weight.requires_grad else text + ", frozen"


@standard
class LogitNorm(nn.BatchNorm2d):
    """Batch norm of logits: a single position is normalised by the running statistics, which one value cannot give.

    The statistics stay in fp32 at least, as the logits do, when the network becomes half precision.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() <= input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, False, eps=self.eps)
        return super().forward(input)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, statistic in self.named_buffers():
            if statistic.is_floating_point():
                self._buffers[name] = at_least_float32(statistic)
        return self


class LogitScale(nn.Module):
    """Logits over one number: the root mean square, over batch, positions and regions, of their distance from the mean
    over the regions at each position; in evaluation that of a running average.

    It bounds the logits, whose growth begins a collapse, and makes the size of the guide's filter irrelevant, as a
    batch norm does, but asks nothing about how often a region wins. The arg max stays what it is.
    """

    running_square: Tensor

    def __init__(
        self,
        momentum: float = 0.1,
        eps: float = 1e-5,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_square", torch.ones((), device=device, dtype=dtype))

    def reset_running_stats(self) -> None:
        self.running_square.fill_(1.0)

    def forward(self, logits: Tensor) -> Tensor:
        """(B, M, H, W) to the same, the mean over the regions taken away."""
        centred = logits - logits.mean(1, keepdim=True)
        square = self.running_square.to(logits.dtype)
        if self.training and logits.numel():
            square = centred.square().mean()
            self.running_square.lerp_(square.detach().to(self.running_square.dtype), self.momentum)
        return centred * (square + self.eps).rsqrt()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.running_square = at_least_float32(self.running_square)
        return self


class GuidedSequential(SharedSequential):
    """A sequence whose DRConvs share one guide, computed once on its input and resized after a stride (D2)."""

    name = "guide"

    def forward(self, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and isinstance(input, Tensor):
            return run_guided(self, input, self.guide)[0]
        return super().forward(input)

    def _run(self, x: Tensor, shared_input: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return super()._run(x, shared_input)
        with shared(shared_input):
            return super()._run(x, shared_input)
