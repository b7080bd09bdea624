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

from drconv.nn.kernels import flops, triton_backward, triton_forward, triton_sort
from drconv.nn.kernels.geometry import Geometry
from drconv.nn.kernels.sharing import kept_for
from drconv.nn.kernels.transforms import refuse_tangents

_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_Sorted = tuple[Tensor, Tensor]  # order and starts, see ``triton_sort``
_LARGEST = 2**31 - 1  # places within an image, and pixels of a batch, are counted in 32 bits
_MAX_BATCH = 65535  # images are the second dimension of a grid


def supports(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
) -> bool:
    """1x1 filters, stride 1, one channel group, up to 32 regions; fp32, fp16, bf16; what 32 bits can count; CUDA, or
    Triton's interpreter.
    """
    runs = x.is_cuda or (x.device.type == "cpu" and not isinstance(triton_sort.count_regions, JITFunction))
    types = x.dtype in _TYPES and weight.dtype == x.dtype and logits.dtype == torch.float32
    regions, channels = weight.shape[1], max(x.shape[1], weight.shape[1], weight.shape[2])
    fits = 0 < regions <= triton_sort.MAX_REGIONS and x.shape[1] > 0 and len(x) <= _MAX_BATCH
    return runs and geometry.is_matrix_product(weight) and types and fits and _is_countable(x, channels)


def _is_countable(x: Tensor, channels: int) -> bool:
    """Whether 32 bits hold every place within an image, of x as it lies and of maps with so many channels."""
    pixels = x.shape[2] * x.shape[3]
    reach = sum((size - 1) * step for size, step in zip(x.shape[1:], x.stride()[1:], strict=True))
    return max(len(x) * pixels, channels * pixels, reach) <= _LARGEST


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
    order, starts = _sort_once(logits, filters.shape[0])
    return convolve(x, filters, logits, scale, order, starts)


def _sort_once(logits: Tensor, groups: int) -> _Sorted:
    """``sort_pixels``, done once for the layers of a block, which share the very same logits (see ``sharing``).

    A captured graph must sort for itself on every replay, and the compiler sees equal calls on its own.
    """
    is_captured = logits.is_cuda and torch.cuda.is_current_stream_capturing()
    kept = None if torch.compiler.is_compiling() or is_captured else kept_for(logits)
    if kept is None:
        return sort_pixels(logits.detach(), groups)
    version = None if logits.is_inference() else logits._version
    key = (version, groups, torch.cuda.current_stream(logits.device) if logits.is_cuda else None)
    if key not in kept:
        kept[key] = sort_pixels(logits.detach(), groups)
    return kept[key]


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
    refuse_tangents(x, filters, logits, scale)
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
    if needs_logits:
        of_logits, of_scale = logits_gradient(x, gradient, filters, logits, scale)
    elif needs_scale:
        of_x, of_scale = _masked_gradients(x, gradient, filters, logits, scale, order, starts)
    if needs_x and of_x is None:
        of_x = convolve(gradient, filters.transpose(2, 3), logits, scale, order, starts)
    if needs_filters:
        of_filters = filter_gradient(x, gradient, scale, order, starts)
    return of_x if needs_x else None, of_filters, of_logits, of_scale if needs_scale else None, None, None


def _masked_gradients(
    x: Tensor, gradient: Tensor, filters: Tensor, logits: Tensor, scale: Tensor, order: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and scale where the logits need none, a frozen guide: one product in place of m + 1.

    The gradient of x is made without the scale, which may be 0; its product with x, summed over the pixels of a region,
    is the gradient of the region's scale.
    """
    unscaled = convolve(gradient, filters.transpose(2, 3), logits, None, order, starts)
    region = logits.argmax(1, keepdim=True)  # ties to the lowest, as in the sort
    own = (region == torch.arange(scale.shape[1], device=x.device).view(-1, 1, 1)).float()
    by_pixel = (x.float() * unscaled.float()).sum(1)
    of_scale = torch.bmm(own.flatten(2), by_pixel.flatten(1).unsqueeze(2)).squeeze(2)
    factor = scale.gather(1, region.flatten(1)).view_as(region)
    return (unscaled * factor).to(x.dtype), of_scale


convolve.register_autograd(_backward, setup_context=_save)
flops.register_triton()
