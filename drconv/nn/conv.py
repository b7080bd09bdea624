"""DRConv2d: the layer."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from drconv.nn.filter_bank import FilterBank
from drconv.nn.functional import region_conv2d
from drconv.nn.generators import PooledGate, grouped_filters, mix_experts, remake_in_backward
from drconv.nn.gradients import scale_gradient, share_gradient
from drconv.nn.guide import Guide
from drconv.nn.inference import run_layer
from drconv.nn.kernels.geometry import Geometry, Pair
from drconv.nn.kernels.transforms import is_transformed
from drconv.nn.options import channels, check_choices, check_hidden, positive, window, within
from drconv.nn.packing import PackedFilters
from drconv.nn.plain import standard
from drconv.nn.precision import autocast_dtype, without_autocast


@standard
class DRConv2d(FilterBank):
    """Dynamic region-aware convolution: every position is convolved with the filter its region chose (Eq. 4-8).

    Built like ``nn.Conv2d`` and called like it, ``conv(x)``, or ``conv(x, logits)`` with the logits of a shared guide.
    The defaults train stably (D11); ``**PRINTED_FORM`` makes the printed form. They differ in the backward pass alone.

    Args:
        in_channels: C.
        out_channels: O.
        kernel_size: as in ``nn.Conv2d``; so are the next five.
        stride: see there.
        padding: see there, numbers only.
        dilation: see there.
        groups: see there.
        bias: see there; one bias for all regions.
        regions: M, filters per image.
        generator: "grouped", the paper's two layers, or "experts", that of the authors' released code (D1).
        hidden: width of the grouped generator's first layer, a multiple of M; None for M.
        experts: number of shared filters that are mixed.
        generator_bias: a bias in the grouped generator's second layer, W = s V + U.
        scale: False drops the grouped generator's first layer, W = V for every image.
        init_noise: spread of the filters over the regions at the start, as a share of the filter's own spread.
        init_gain: standard deviation of a filter at the start over the usual one; None for 1/sqrt(M), and for
            1/sqrt(experts) with "experts", as in the released code.
        filter_sharing: share of all regions' filter gradients in a region's own, see ``share_gradient``; 0 as printed
            (D11). For "grouped" only: experts are shared by construction.
        filter_sharing_end: the share that is reached linearly at the end (``set_progress``); None for a constant one.
        generator_gradient: factor on the gradient of the generator's first layer and what flows on from it; 1 as
            printed (D11).
        guide: "own" (k x k, as the text says) or "shared" (the caller passes logits) (D2).
        guide_stride: the own guide is computed at 1/guide_stride of the output's resolution, then resized.
        guide_norm: of the own guide: "none", as printed, "scale" or "batch", see ``Guide``; so are the next three.
        guide_gradient: see there.
        feature_gradient: see there.
        guide_frozen: see there.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight: (M U, O, C/groups, K, K) with U = hidden / M units per region, or (experts, O, C/groups, K, K).
        filter_bias: (M, O, C/groups, K, K), only with ``generator_bias``.
        bias: (O,) or None.
        generator: ``PooledGate`` or None.
        guide: ``Guide`` or None.

    Raises:
        ValueError: an option is unknown, out of its range, or contradicts another.
    """

    weight: nn.Parameter
    filter_bias: nn.Parameter | None
    bias: nn.Parameter | None
    trial: Callable[..., Tensor] | None = None  # in place of region_conv2d in training; set by try_routing
    relu_limit: float | None = None  # upper end of a ReLU on the output; set by fuse_for_inference

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
        regions: int = 8,
        generator: str = "grouped",
        hidden: int | None = None,
        experts: int = 8,
        generator_bias: bool = False,
        scale: bool = True,
        init_noise: float = 0.1,
        init_gain: float | None = None,
        filter_sharing: float = 0.9,
        filter_sharing_end: float | None = None,
        generator_gradient: float = 0.1,
        guide: str = "own",
        guide_stride: int = 1,
        guide_norm: str = "none",
        guide_gradient: float = 1.0,
        feature_gradient: float = 1.0,
        guide_frozen: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels, groups = channels(in_channels, out_channels, groups)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride, self.padding, self.dilation = window(kernel_size, stride, padding, dilation)
        self.regions, experts = positive("regions", regions), positive("experts", experts)
        hidden = check_hidden(hidden, self.regions)
        check_choices(generator, generator_bias, scale, guide)
        guide_stride = positive("guide_stride", guide_stride)
        self.experts = experts if generator == "experts" else None
        self.init_noise = within("init_noise", init_noise, 0)
        self.init_gain = None if init_gain is None else within("init_gain", init_gain, 0)
        self.filter_sharing = within("filter_sharing", filter_sharing, 0, 1)
        end = filter_sharing if filter_sharing_end is None else filter_sharing_end
        self.filter_sharing_end = within("filter_sharing_end", end, 0, 1)
        self.progress = 0.0
        self.generator_gradient = within("generator_gradient", generator_gradient, 0)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        shape = (out_channels, in_channels // groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(self.experts or hidden, *shape, **factory))
        per_region = nn.Parameter(torch.empty(regions, *shape, **factory)) if generator_bias else None
        self.register_parameter("filter_bias", per_region)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_channels, **factory)) if bias else None)
        self.packed = PackedFilters()
        self.generator: PooledGate | None = None
        if self.experts is not None:
            self.generator = PooledGate(in_channels, regions * experts, (1, 1), 2 / experts, **factory)
        elif scale:
            self.generator = PooledGate(in_channels, hidden, self.kernel_size, 1.0, **factory)
        self.guide: Guide | None = None
        if guide == "own":
            steps = (self.stride[0] * guide_stride, self.stride[1] * guide_stride)
            factors = {"gradient": guide_gradient, "feature_gradient": feature_gradient}
            factory |= {"norm": guide_norm, "frozen": guide_frozen, **factors}
            self.guide = Guide(in_channels, regions, self.kernel_size, steps, self.padding, self.dilation, **factory)
        self.reset_parameters()

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and logits (B, M, H', W') where the guide is shared, to (B, O, Ho, Wo).

        As with ``nn.Conv2d`` one image (C, H, W), then with logits (M, H', W'), gives (O, Ho, Wo).
        """
        if x.dim() == 3:
            logits = guide.unsqueeze(0) if guide is not None and guide.dim() == 3 else guide
            return DRConv2d.forward(self, x.unsqueeze(0), logits)[0]
        if x.dim() != 4:
            raise ValueError(f"the input is {tuple(x.shape)}; DRConv2d takes (B, C, H, W) or (C, H, W)")
        source = self.guide if guide is None else guide
        if source is None:
            raise RuntimeError(
                "this DRConv2d has no guide of its own; call it with the logits, conv(x, logits), put it into a "
                'GuidedSequential, or build it with guide="own"'
            )
        if not torch.is_grad_enabled() and (result := run_layer(self, x, source)) is not None:
            return result[0]
        guide = source if isinstance(source, Tensor) else source(x)
        if self.is_factored:
            y = self._convolve(x, guide, self._shared_weight().unsqueeze(0), self._gate(x))
        else:
            y = self._convolve_generated(x, guide)
        if self.bias is not None:
            y = y + self.bias.to(y.dtype).view(self.out_channels, 1, 1)
        # Not clamp(0, ...): two types of bounds are too many for torch.onnx.
        return y if self.relu_limit is None else y.clamp(0.0, self.relu_limit)

    @property
    def takes_guide(self) -> bool:
        """Whether a ``GuidedSequential`` hands it the logits it shares."""
        return self.guide is None

    @property
    def is_factored(self) -> bool:
        """Whether the filters are one static filter per region times a scale, and so need not be made."""
        return self.experts is None and self.filter_bias is None and self.weight.shape[0] == self.regions

    @property
    def is_one_product(self) -> bool:
        """Whether a position is one product of one pixel, with a static or a mixed filter: 1x1, stride 1, one group."""
        weight = self.weight
        is_pointwise = weight.shape[3:] == (1, 1) and self.stride == (1, 1) and self.padding == (0, 0)
        if not is_pointwise or self.groups != 1:
            return False
        return self.experts is not None or (self.filter_bias is None and len(weight) == self.regions)

    def reset_parameters(self, std: float | None = None) -> None:
        """Start as a standard convolution that learns as fast as one.

        Region r's effective filter, the generator's start included, is ``gain * (f + noise * n_r) / sqrt(1 + noise^2)``
        with one common draw f, uniform with the usual standard deviation, and a draw n_r of the same spread for each
        region. Its gradient sees 1/M of the pixels; the smaller filter restores the usual relative step before a batch
        norm. Experts are independent draws; their mixtures start nearly alike by construction.

        Args:
            std: the usual standard deviation; None for that of ``nn.Conv2d``, 1/sqrt(3 fan-in), and for "experts" that
                of the released code, sqrt(2 / fan-in).
        """
        fan_in = self.weight[0, 0].numel()
        if std is None:
            std = (2 / fan_in) ** 0.5 if self.experts else (3 * fan_in) ** -0.5
        gain = self.init_gain if self.init_gain is not None else (self.experts or self.regions) ** -0.5
        with torch.no_grad():
            if self.experts:
                _fill(self.weight, gain * std * self.experts**0.5)
            else:
                _fill(self.weight, self.init_noise)
                self.weight.add_(_fill(torch.empty_like(self.weight[0]), 1.0))
                self.weight.mul_(gain * std / (1 + self.init_noise**2) ** 0.5 / self._gate_start())
            if self.filter_bias is not None:
                self.filter_bias.zero_()
            if self.bias is not None:
                nn.init.uniform_(self.bias, -(fan_in**-0.5), fan_in**-0.5)
        for module in (self.generator, self.guide):
            if module is not None:
                module.reset_parameters()

    @torch.no_grad()
    def load_filter(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Start from a standard convolution's filter: the output is that convolution's, whatever the guide says.

        Every region gets the filter and the generator's first layer starts at zero, from where it learns. Experts
        differ by ``init_noise`` around the filter, which stays their mean.

        Args:
            weight: (O, C/groups, K, K).
            bias: (O,) or None for 0.

        Raises:
            ValueError: the shape does not fit.
        """
        if weight.shape != self.weight.shape[1:]:
            raise ValueError(f"the filter is {tuple(weight.shape)}; this DRConv2d needs {tuple(self.weight.shape[1:])}")
        if bias is not None and self.bias is None:
            raise ValueError("a bias is given and this DRConv2d has none; build it with bias=True")
        if self.generator is not None:
            self.generator.weight.zero_()
            self.generator.bias.zero_()
        if self.experts:
            noise = _fill(torch.empty_like(self.weight), self.init_noise * float(weight.std(correction=0)))
            self.weight.copy_(weight + noise - noise.mean(0))
        else:
            self.weight.copy_(weight / self._gate_start())
        if self.filter_bias is not None:
            self.filter_bias.zero_()
        if self.bias is not None:
            self.bias.zero_() if bias is None else self.bias.copy_(bias)

    def _gate_start(self) -> float:
        """Sum of a region's gate units at the start, which multiplies its filter."""
        return 1.0 if self.generator is None else 0.5 * (self.weight.shape[0] // self.regions)

    def _gate(self, x: Tensor) -> Tensor | None:
        """The generator's first layer, (B, units); None where there is none."""
        if self.generator is None:
            return None
        gate = self.generator(x)
        return gate if self.generator_gradient == 1 else scale_gradient(gate, self.generator_gradient)

    def _shared_weight(self) -> Tensor:
        share = self.filter_sharing + (self.filter_sharing_end - self.filter_sharing) * self.progress
        if share == 0 or self.experts is not None:
            return self.weight
        return share_gradient(self.weight, share)

    def _convolve(self, x: Tensor, guide: Tensor, weight: Tensor, scale: Tensor | None) -> Tensor:
        geometry = Geometry(self.stride, self.padding, self.dilation, self.groups)
        if self.trial is not None and self.training:
            return self.trial(self.progress, x, weight, guide, scale, geometry)
        return region_conv2d(x, weight, guide, scale=scale, **geometry._asdict())

    def _convolve_generated(self, x: Tensor, guide: Tensor) -> Tensor:
        """The convolution with filters made for every image, which the backward pass makes again."""
        gate = self._gate(x)
        assert gate is not None  # only without a generator is there no gate, and then the filters are static
        dtype = autocast_dtype(x) or x.dtype

        weight, bias = self._shared_weight(), self.filter_bias  # also for backward, whatever the layer has by then

        def make() -> Tensor:
            with without_autocast(x):
                return self._mix(gate, weight, bias).to(dtype)

        filters = make()
        if not filters.requires_grad or torch.compiler.is_compiling() or is_transformed():
            return self._convolve(x, guide, filters, None)
        with remake_in_backward(filters, make, (gate, weight, bias)):
            return self._convolve(x, guide, filters, None)

    def make_filters(self, gate: Tensor) -> Tensor:
        """(B, M, O, C/groups, K, K) from the generator's first layer."""
        return self._mix(gate, self._shared_weight(), self.filter_bias)

    def _mix(self, gate: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        weight = weight.to(gate.dtype)
        if self.experts is not None:
            return mix_experts(weight, gate)
        return grouped_filters(weight, gate, None if bias is None else bias.to(gate.dtype), self.regions)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.packed.forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.packed.forget()
        super()._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        """As ``nn.Conv2d``, then the form of the filters, how they train (D11), and what fusion has added."""
        ends = {None: None, torch.inf: "ReLU", 6.0: "ReLU6"}
        options = {  # what it is, and what goes without saying
            "padding": (self.padding, (0, 0)),
            "dilation": (self.dilation, (1, 1)),
            "groups": (self.groups, 1),
            "regions": (self.regions, None),
            "experts": (self.experts, None),
            "hidden": (len(self.weight), self.experts or self.regions),
            "generator_bias": (self.filter_bias is not None, False),
            "scale": (self.generator is not None, True),
            "bias": (self.bias is not None, True),
            "filter_sharing": (self.filter_sharing, self.filter_sharing if self.experts else None),
            "generator_gradient": (self.generator_gradient, self.generator_gradient if not self.generator else None),
            "fused": (ends.get(self.relu_limit, self.relu_limit), None),
            "packed": (self.packed.is_asked_for, False),
        }
        shown = [f"{name}={value}" for name, (value, usual) in options.items() if value != usual]
        geometry = f"kernel_size={self.kernel_size}, stride={self.stride}"
        return ", ".join([f"{self.in_channels}, {self.out_channels}, {geometry}", *shown])


def _fill(tensor: Tensor, std: float) -> Tensor:
    """Uniform around 0 with this standard deviation, in place."""
    bound = 3**0.5 * std
    return nn.init.uniform_(tensor, -bound, bound)
