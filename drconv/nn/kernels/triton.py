"""The operator on CUDA: 1x1 region-wise convolutions in Triton, registered with PyTorch as operators.

Forward: sort the pixels by region (``triton_sort``), one matrix product per region (``triton_forward``),
the scale in its epilogue; the filters of ``grouped`` are never made. Backward: the gradient of x is the
same operator with the filters transposed; filters, logits and scale are in ``triton_backward``. Everything
is launched on grids that follow from the shapes, so the host never waits for the device. ``torch.compile`` sees
operators with known shapes: no graph break.
"""

from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op
from triton.runtime import JITFunction

from drconv.nn.kernels import triton_backward, triton_forward, triton_sort
from drconv.nn.kernels.geometry import Geometry

_TYPES = (torch.float32, torch.float16, torch.bfloat16)


def supports(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> bool:
    """1x1 filters, stride 1, one channel group, up to 32 regions; fp32, fp16, bf16; CUDA, or Triton's
    interpreter.
    """
    runs = x.is_cuda or (x.device.type == "cpu" and not isinstance(triton_sort.count_regions, JITFunction))
    types = x.dtype in _TYPES and weight.dtype == x.dtype and logits.dtype == torch.float32
    return runs and geometry.is_matrix_product(weight) and types and weight.shape[1] <= triton_sort.MAX_REGIONS


def region_conv2d(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> Tensor:
    """Region-wise 1x1 convolution with the gradients of Eq. 7 and 8; the arguments are those of every kernel."""
    filters = weight.flatten(3)
    if scale is not None:
        scale = scale.flatten(1).contiguous()
    order, starts = sort_pixels(logits.detach(), filters.shape[0])
    return convolve(x, filters, logits, scale, order, starts)


@custom_op("drconv::triton_sort_pixels", mutates_args=())
def sort_pixels(logits: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """See ``triton_sort.sort_pixels``."""
    with torch.cuda.device_of(logits):
        return triton_sort.sort_pixels(logits, groups)


@sort_pixels.register_fake
def _(logits: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    batch, regions, height, width = logits.shape
    order = logits.new_empty((groups, batch * height * width // max(groups, 1)), dtype=torch.int32)
    return order, logits.new_empty((groups, regions + 1), dtype=torch.int32)


@custom_op("drconv::triton_region_conv2d", mutates_args=())
def convolve(x: Tensor, filters: Tensor, logits: Tensor, scale: Tensor | None, order: Tensor, starts: Tensor) -> Tensor:
    """x (B, C, H, W), filters (1 or B, M, O, C), logits (B, M, H, W) for their gradient only, scale (B, M)
    fp32.
    """
    with torch.cuda.device_of(x):
        return triton_forward.multiply(x, filters, scale, order, starts)


@convolve.register_fake
def _(x: Tensor, filters: Tensor, logits: Tensor, scale: Tensor | None, order: Tensor, starts: Tensor) -> Tensor:
    shape = (x.shape[0], filters.shape[2], *x.shape[2:])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=triton_forward.memory_format(x))


@custom_op("drconv::triton_filter_gradient", mutates_args=())
def filter_gradient(x: Tensor, gradient: Tensor, scale: Tensor | None, order: Tensor, starts: Tensor) -> Tensor:
    """See ``triton_backward.filter_gradient``."""
    with torch.cuda.device_of(x):
        return triton_backward.filter_gradient(x, gradient, scale, order, starts)


@filter_gradient.register_fake
def _(x: Tensor, gradient: Tensor, scale: Tensor | None, order: Tensor, starts: Tensor) -> Tensor:
    return x.new_empty((starts.shape[0], starts.shape[1] - 1, gradient.shape[1], x.shape[1]))


@custom_op("drconv::triton_logits_gradient", mutates_args=())
def logits_gradient(
    x: Tensor, gradient: Tensor, filters: Tensor, logits: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See ``triton_backward.logits_gradient``."""
    with torch.cuda.device_of(x):
        return triton_backward.logits_gradient(x, gradient, filters, logits, scale)


@logits_gradient.register_fake
def _(x: Tensor, gradient: Tensor, filters: Tensor, logits: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return logits.new_empty(logits.shape), logits.new_empty(logits.shape[:2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, filters, logits, scale, order, starts = ctx.saved_tensors
    needs_x, needs_filters, needs_logits, needs_scale = ctx.needs_input_grad[:4]
    of_x = of_filters = of_logits = of_scale = None
    if needs_x:
        of_x = convolve(gradient, filters.transpose(2, 3), logits, scale, order, starts)
    if needs_filters:
        of_filters = filter_gradient(x, gradient, scale, order, starts)
    if needs_logits or needs_scale:
        of_logits, of_scale = logits_gradient(x, gradient, filters, logits, scale)
    return (
        of_x,
        of_filters,
        of_logits if needs_logits else None,
        of_scale if needs_scale else None,
        None,
        None,
    )


convolve.register_autograd(_backward, setup_context=_save)
