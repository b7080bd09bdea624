"""The sorted, factored form of the operator: ordinary torch operations on any device.

The output positions of the whole batch are sorted by region, so that each region's filter meets its pixels in one
matrix product: one convolution's arithmetic in the forward pass. A scale multiplies the pixels, so filters per image
are never made for it. Backward, the guide needs the response of every filter at every position; these M products are
reduced at once over the channels and hold the gradient of x as well. Positions, not filters, are kept for backward.

Windows other than 1x1 go through ``unfold``, large maps in strips. The letters: N = B Ho Wo positions (rows), G groups,
D = C/G K K the length of a row in a group, S segments: the M regions, or the B M pairs where every image has its own
filters.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn.kernels import flops, segments, strips
from drconv.nn.kernels.geometry import Geometry
from drconv.nn.kernels.rows import (
    as_image,
    dot,
    gather_rows,
    image_regions,
    memory_format,
    scale_rows,
    taps,
    to_image,
    to_rows,
)
from drconv.nn.kernels.transforms import refuse_tangents

_CHUNK = 1 << 20  # numbers per piece of the M responses: 4 MB in fp32, which stays in a CPU's cache
_CHUNK_CUDA = 1 << 26


def supports(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> bool:
    """Every device, type and shape."""
    return True


def region_conv2d(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """See ``drconv.nn.kernels``."""
    if torch.compiler.is_compiling():
        return _operator(x, weight, logits, scale, _numbers(geometry))
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, logits, scale)):
        return _RegionConv2d.apply(x, weight, logits, scale, geometry)
    return forward(x, weight, logits, scale, geometry)


class _RegionConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: Geometry
    ) -> Tensor:
        ctx.save_for_backward(x, weight, logits, scale)
        ctx.geometry = geometry
        return forward(x, weight, logits, scale, geometry)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, logits, scale = ctx.saved_tensors
        return *backward(grad, x, weight, logits, scale, ctx.geometry, ctx.needs_input_grad[:4]), None


def forward(x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: Geometry) -> Tensor:
    return strips.run_forward(_forward_strip, x, weight, logits, scale, geometry)


def _forward_strip(x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: Geometry) -> Tensor:
    batch, _, height, width = logits.shape
    out_channels = weight.shape[2]
    if x.numel() == 0:
        return as_image(x.new_zeros(0, out_channels), (batch, height, width), x)
    mask = logits.max(1).indices.view(batch, -1)
    layout = segments.sort(_segment_ids(mask, weight), weight.shape[0] * weight.shape[1])
    rows = gather_rows(to_rows(x, weight, geometry), mask, scale, layout)
    products = segments.multiply(rows, _matrices(weight, geometry.groups).mT, layout)
    output = products.flatten(1).index_select(0, layout.slot)
    return as_image(output, (batch, height, width), x)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, logits and scale, None where not needed."""
    return strips.run_backward(_backward_strip, grad, x, weight, logits, scale, geometry, needs)


def _backward_strip(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    inputs = (x, weight, logits, scale)
    if x.numel() == 0:
        return tuple(torch.zeros_like(t) if t is not None and n else None for t, n in zip(inputs, needs, strict=True))
    batch, regions = logits.shape[:2]
    mask = logits.max(1).indices.view(batch, -1)
    rows = to_rows(x, weight, geometry)
    grad_rows = grad.permute(0, 2, 3, 1).reshape(rows.shape[0], geometry.groups, -1)
    matrices = _matrices(weight, geometry.groups)
    grad_x: Tensor | None = None
    grad_weight: Tensor | None = None
    grad_logits: Tensor | None = None
    grad_scale: Tensor | None = None
    if needs[1] or not needs[2]:
        layout = segments.sort(_segment_ids(mask, weight), weight.shape[0] * regions)
        grad_sorted = segments.gather(grad_rows, layout)
    if needs[1]:
        products = segments.outer(grad_sorted, gather_rows(rows, mask, scale, layout), layout)
        grad_weight = products.view_as(weight)
    if needs[2]:
        chosen, dots = _all_responses(grad_rows, rows, matrices, mask, taps(scale), regions)
        grad_logits = _softmax_backward(logits, dots, scale)
        own = mask[:, :, None, None].expand(-1, -1, 1, dots.shape[3])
        dots = dots.gather(2, own).squeeze(2)
    elif needs[0] or needs[3]:
        chosen = segments.multiply(grad_sorted, matrices, layout).index_select(0, layout.slot)
        dots = dot(chosen, rows, taps(scale)).view(batch, -1, taps(scale))
    if needs[0]:
        grad_x = to_image(scale_rows(chosen, scale, mask), x, weight, geometry)
    if needs[3] and scale is not None:
        hard = F.one_hot(mask, regions).to(dots.dtype)
        grad_scale = torch.bmm(hard.mT, dots).view_as(scale)
    return grad_x, grad_weight, grad_logits, grad_scale


def _all_responses(
    grad: Tensor, rows: Tensor, matrices: Tensor, mask: Tensor, num_taps: int, regions: int
) -> tuple[Tensor, Tensor]:
    """What every filter answers at every position, before the scale, in pieces of some images.

    Returns:
        The gradient of the rows by their own region's filter (N, G, D), and the products ``<grad_y, W_j x>`` of all
        regions (B, P, M, taps) (Eq. 7), in fp32 or fp64.
    """
    batch, positions = mask.shape
    groups, length = rows.shape[1:]
    per_image = matrices.shape[0] != regions
    # (1 or B, G, O/G, M D)
    wide = matrices.unflatten(0, (-1, regions)).permute(0, 2, 3, 1, 4).flatten(3)
    limit = _CHUNK_CUDA if grad.is_cuda else _CHUNK
    step = max(1, limit // (positions * regions * groups * length))
    precise = torch.float64 if rows.dtype == torch.float64 else torch.float32
    chosen = torch.empty_like(rows)
    dots = rows.new_empty(batch * positions, regions, num_taps, dtype=precise)
    for first in range(0, batch, step):
        images = slice(first, first + step)
        here = slice(first * positions, min(first + step, batch) * positions)
        parts = matrices.shape[0] // regions if not per_image else mask[images].shape[0]
        x = rows[here].unflatten(0, (parts, -1)).transpose(1, 2)  # (parts, G, R, D)
        y = grad[here].unflatten(0, (parts, -1)).transpose(1, 2)
        responses = segments.batch_multiply(y, wide[images] if per_image else wide).unflatten(3, (regions, length))
        own = mask[images].reshape(parts, 1, -1).expand(-1, groups, -1).reshape(-1)
        own = own + torch.arange(len(own), device=own.device) * regions
        picked = responses.view(-1, length).index_select(0, own).view_as(x)
        chosen[here] = picked.transpose(1, 2).flatten(0, 1)
        products = responses.to(precise).mul_(x.unsqueeze(3))
        sums = products.unflatten(4, (-1, num_taps)).sum((1, 4))
        dots[here] = sums.flatten(0, 1)
    return chosen, dots.view(batch, positions, regions, num_taps)


def _softmax_backward(logits: Tensor, dots: Tensor, scale: Tensor | None) -> Tensor:
    """Eq. 8 on the products of Eq. 7, scaled: (B, P, M, taps) to (B, M, Ho, Wo)."""
    batch, regions, height, width = logits.shape
    if scale is not None:
        dots = dots * scale.reshape(batch, 1, regions, -1)
    by_mask = dots.sum(3).transpose(1, 2).unflatten(2, (height, width))
    soft = logits.softmax(1)
    return soft * (by_mask - (soft * by_mask).sum(1, keepdim=True))


def _segment_ids(mask: Tensor, weight: Tensor) -> Tensor:
    """The filter of every row (N,): its region, or its pair of image and region."""
    return mask.reshape(-1) if weight.shape[0] == 1 else image_regions(mask, weight.shape[1])


def _matrices(weight: Tensor, groups: int) -> Tensor:
    """(F, M, O, C/G, K, K) to (S, G, O/G, D)."""
    return weight.reshape(weight.shape[0] * weight.shape[1], groups, weight.shape[2] // groups, -1)


@torch.library.custom_op("drconv::region_conv2d_torch", mutates_args=())
def _operator(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: list[int],
) -> Tensor:
    """The forward pass as one opaque operator for ``torch.compile`` and ``torch.export``."""
    refuse_tangents(x, weight, logits, scale)
    return forward(x, weight, logits, scale, _geometry(geometry))


@_operator.register_fake
def _(x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: list[int]) -> Tensor:
    shape = (logits.shape[0], weight.shape[2], *logits.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))


@torch.library.custom_op("drconv::region_conv2d_torch_backward", mutates_args=())
def _operator_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: list[int],
    needs: list[bool],
) -> list[Tensor]:
    """The backward pass as one operator; empty tensors stand for gradients that are not needed."""
    gradients = backward(grad, x, weight, logits, scale, _geometry(geometry), tuple(needs))
    return [grad.new_empty(0) if g is None else g.contiguous() for g in gradients]


@_operator_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: list[int],
    needs: list[bool],
) -> list[Tensor]:
    inputs = zip((x, weight, logits, scale), needs, strict=True)
    return [grad.new_empty(0) if t is None or not need else t.new_empty(t.shape) for t, need in inputs]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.geometry = inputs[4]


def _operator_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = list(ctx.needs_input_grad[:4])
    gradients = _operator_backward(grad, *ctx.saved_tensors, ctx.geometry, needs)
    return *(g if need else None for g, need in zip(gradients, needs, strict=True)), None


_operator.register_autograd(_operator_gradient, setup_context=_setup_context)
flops.register_torch()


def _numbers(geometry: Geometry) -> list[int]:
    """As an operator takes it."""
    return [*geometry.stride, *geometry.padding, *geometry.dilation, geometry.groups]


def _geometry(numbers: list[int]) -> Geometry:
    return Geometry((numbers[0], numbers[1]), (numbers[2], numbers[3]), (numbers[4], numbers[5]), numbers[6])
