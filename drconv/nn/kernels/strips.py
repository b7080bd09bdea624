"""Large maps in strips: windows other than 1x1 hold every pixel once a tap, so a map is unfolded piece by piece.

A strip is some images, or some output rows of one image. What it reads and what it gives back are plain slices, so a
kernel that knows nothing of strips runs on each.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn.kernels.geometry import Geometry

LIMIT = 1 << 22  # numbers that one strip unfolds, 16 MB in fp32; larger ones are slower on a CPU, too
LIMIT_CUDA = 1 << 27

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, Geometry], Tensor]
Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None, Geometry]
Gradients = tuple[Tensor | None, ...]
Backward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, Geometry, tuple[bool, ...]], Gradients]


class Strip(NamedTuple):
    """Images, output rows, the input rows they read, and the zeros above and below these."""

    images: slice
    rows: slice
    read: slice
    padding: tuple[int, int]


def cut(x: Tensor, weight: Tensor, logits: Tensor, geometry: Geometry, copies: int) -> list[Strip]:
    """The strips of a convolution; one where it is 1x1 or small.

    Args:
        x: (B, C, H, W).
        weight: see ``drconv.nn.kernels``; so are the next two.
        logits: see there.
        geometry: see there.
        copies: how often a kernel holds what it has unfolded.
    """
    batch, _, height, width = logits.shape
    per_position = x.shape[1] * weight.shape[4] * weight.shape[5] * copies
    positions = (LIMIT_CUDA if x.is_cuda else LIMIT) // per_position
    if weight.shape[4:] == (1, 1) or batch * height * width <= positions:
        return [Strip(slice(0, batch), slice(0, height), slice(0, x.shape[2]), (geometry.padding[0],) * 2)]
    images = max(1, positions // (height * width))
    rows = height if images > 1 else max(1, min(height, positions // width))
    return [
        Strip(slice(image, min(image + images, batch)), slice(row, stop), *_read(x, weight, geometry, row, stop))
        for image in range(0, batch, images)
        for row in range(0, height, rows)
        for stop in (min(row + rows, height),)
    ]


def _read(x: Tensor, weight: Tensor, geometry: Geometry, row: int, stop: int) -> tuple[slice, tuple[int, int]]:
    stride, padding = geometry.stride[0], geometry.padding[0]
    first = row * stride - padding
    end = (stop - 1) * stride - padding + geometry.dilation[0] * (weight.shape[4] - 1) + 1
    above, below = max(0, -first), max(0, end - x.shape[2])
    return slice(first + above, end - below), (above, below)


def run_forward(
    kernel: Kernel, x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: Geometry
) -> Tensor:
    """What ``kernel`` gives on the whole."""
    strips = cut(x, weight, logits, geometry, copies=2)
    if len(strips) == 1:
        return kernel(x, weight, logits, scale, geometry)
    output: Tensor | None = None
    for strip, inputs in _inputs(strips, x, weight, logits, scale, geometry):
        part = kernel(*inputs)
        if output is None:
            shape = (logits.shape[0], part.shape[1], *logits.shape[2:])
            is_last = part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
            layout = torch.channels_last if is_last else torch.contiguous_format
            output = part.new_empty(shape).contiguous(memory_format=layout)
        output[strip.images, :, strip.rows] = part
    assert output is not None
    return output


def run_backward(
    kernel: Backward,
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    scale: Tensor | None,
    geometry: Geometry,
    needs: tuple[bool, ...],
) -> Gradients:
    """The gradients that ``kernel`` gives on the whole; None where not needed."""
    strips = cut(x, weight, logits, geometry, copies=2 + (logits.shape[1] if needs[2] else 1))
    if len(strips) == 1:
        return kernel(grad, x, weight, logits, scale, geometry, needs)
    totals = [
        None if tensor is None or not need else torch.zeros_like(tensor)
        for tensor, need in zip((x, weight, logits, scale), needs, strict=True)
    ]
    for strip, inputs in _inputs(strips, x, weight, logits, scale, geometry):
        parts = kernel(grad[strip.images, :, strip.rows], *inputs, needs)
        if parts[0] is not None:
            above, below = strip.padding
            parts = (parts[0][:, :, above : parts[0].shape[2] - below], *parts[1:])
        own = slice(None) if weight.shape[0] == 1 else strip.images
        places: list[Any] = [(strip.images, slice(None), strip.read), own, (strip.images, slice(None), strip.rows)]
        for total, part, place in zip(totals, parts, [*places, strip.images], strict=True):
            if total is not None and part is not None:
                total[place] += part
    return tuple(totals)


def _inputs(
    strips: list[Strip], x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, geometry: Geometry
) -> Iterator[tuple[Strip, Inputs]]:
    inner = geometry._replace(padding=(0, geometry.padding[1]))
    for strip in strips:
        part = F.pad(x[strip.images, :, strip.read], (0, 0, *strip.padding))
        filters = weight if weight.shape[0] == 1 else weight[strip.images]
        own = None if scale is None else scale[strip.images]
        yield strip, (part, filters, logits[strip.images, :, strip.rows], own, inner)
