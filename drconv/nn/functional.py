"""The operator as a function: checks, the guide's resizing, the choice of a kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn import kernels
from drconv.nn.kernels.geometry import Geometry, Pair, output_size, pair
from drconv.nn.options import positive, window
from drconv.nn.precision import autocast_dtype


def region_conv2d(
    x: Tensor,
    weight: Tensor,
    guide: Tensor,
    *,
    scale: Tensor | None = None,
    stride: int | Pair = 1,
    padding: int | Pair = 0,
    dilation: int | Pair = 1,
    groups: int = 1,
    kernel: str | None = None,
) -> Tensor:
    """Convolve every output position with the filter of its region (Eq. 4-5; gradients by Eq. 7-8).

    The region of a position is the arg max of the guide's logits over the M regions, ties to the lowest index. The
    filter of region r at tap (i, j) in image b is ``scale[b, r(, i, j)] * weight[b or 0, r, :, :, i, j]``. The
    gradients of x, weight and scale pass through this hard choice, the guide's through the softmax of its logits.

    Under autocast x and weight are cast to its type; the guide and the scale are handled in fp32 (fp64 for fp64).

    Args:
        x: (B, C, H, W), any memory format; B may be 0. Or (C, H, W), and then guide, scale and result without B too.
        weight: (1, M, O, C/groups, K, K), or (B, M, O, C/groups, K, K) for filters per image.
        guide: logits (B, M, H', W'); resized (nearest) where this is not the output's size.
        scale: (B, M), (B, M, K, K) or None for 1.
        stride: as in ``torch.nn.functional.conv2d``.
        padding: as there, numbers only.
        dilation: as there.
        groups: as there.
        kernel: "reference", "torch", "cpu" or "triton"; None lets ``DRCONV_KERNEL`` or the device decide.

    Returns:
        (B, O, Ho, Wo) in the type and memory format of x.

    Raises:
        ValueError: shapes or types do not fit, or the named kernel cannot run.
    """
    if x.dim() == 3:
        guide = guide.unsqueeze(0) if guide.dim() == 3 else guide
        scale = scale.unsqueeze(0) if scale is not None and scale.dim() in (1, 3) else scale
        options = {"scale": scale, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return region_conv2d(x.unsqueeze(0), weight, guide, kernel=kernel, **options)[0]  # type: ignore[arg-type]
    if (dtype := autocast_dtype(x)) is not None:
        x, weight = x.to(dtype), weight.to(dtype)
    geometry = Geometry(*_window(stride, padding, dilation), positive("groups", groups))
    _check(x, weight, guide, scale, groups)
    size = output_size(x, weight, *geometry[:3])
    precise = torch.float64 if x.dtype == torch.float64 else torch.float32
    logits = guide.to(precise)
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="nearest")
    if scale is not None:
        scale = scale.to(precise)
    run = kernels.select(x, weight, logits, scale, geometry, kernel)
    return run(x, weight, logits, scale, geometry)


def _window(stride: int | Pair, padding: int | Pair, dilation: int | Pair) -> tuple[Pair, Pair, Pair]:
    if torch.compiler.is_compiling():
        return pair(stride), pair(padding), pair(dilation)
    return window(1, stride, padding, dilation)[1:]


def _check(x: Tensor, weight: Tensor, guide: Tensor, scale: Tensor | None, groups: int) -> None:
    """Hold the shapes of ``region_conv2d`` against each other."""
    if x.dim() != 4 or weight.dim() != 6 or guide.dim() != 4:
        raise ValueError(
            f"x, weight and guide have {x.dim()}, {weight.dim()} and {guide.dim()} dimensions; "
            "they need 4 (B, C, H, W), 6 (B or 1, M, O, C/groups, K, K) and 4 (B, M, H', W')"
        )
    batch, channels = x.shape[:2]
    filters, regions, out_channels, in_channels = weight.shape[:4]
    if in_channels * groups != channels or out_channels % groups:
        raise ValueError(
            f"x has {channels} channels and weight is {tuple(weight.shape)} with groups={groups}; "
            "weight needs C/groups channels in its fourth dimension and a third dimension that groups divides"
        )
    if filters not in (1, batch):
        raise ValueError(f"weight holds filters for {filters} images; use 1 or the batch of x, {batch}")
    if regions < 1:
        raise ValueError(f"weight is {tuple(weight.shape)}; it needs at least one region in its second dimension")
    if guide.shape[0] != batch or guide.shape[1] != regions:
        raise ValueError(f"guide is {tuple(guide.shape)}; it needs ({batch}, {regions}, H', W') to fit x and weight")
    if scale is not None and tuple(scale.shape) not in (
        (batch, regions),
        (batch, regions, *weight.shape[4:]),
    ):
        raise ValueError(
            f"scale is {tuple(scale.shape)}; it needs {(batch, regions)} or {(batch, regions, *weight.shape[4:])}"
        )
    if weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype} and x is {x.dtype}; give both the same type")
