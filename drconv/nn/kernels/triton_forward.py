"""Triton: one matrix product per region over sorted pixels, for the output and for the gradient of the input.

Every tile holds pixels of a single region, so that its filter is loaded once. The number of tiles is not
known on the host, its bound is: with T pixels a tile and regions that start at s_r, region r owns the tiles
from s_r // T + r on, which always suffices, and a group has at most N / T + M of them. Tiles past the end
of their region return at once.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from drconv.nn.kernels.pixels import flattened, strides


class Tile(NamedTuple):
    """Sizes of a tile and how it runs. The sizes are those that need no spilled registers on any target."""

    pixels: int
    columns: int  # of the result
    inner: int  # of the summed dimension at once
    warps: int
    stages: int


def block(size: int, largest: int) -> int:
    """The power of two that covers a size, up to the largest; 16 at least, for the tensor cores."""
    return min(largest, max(16, triton.next_power_of_2(size)))


def product_tile(pixels: int, inner: int, columns: int, itemsize: int) -> Tile:
    """Sizes for a product of pixels and filters. Low and wide tiles spill, and so do high and narrow ones."""
    rows = block(pixels, 64 if columns > 16 else 32)
    width = block(columns, 64 if pixels > 32 else 32)
    return Tile(rows, width, block(inner, 64 // itemsize), warps=8 if rows * width >= 2048 else 4, stages=3)


def alignment(*sizes: int) -> int:
    """The largest power of two up to 16 that divides all sizes.

    A kernel that knows it loads several values at once; Triton itself looks for 16 only, and the channels
    of ShuffleNetV2 (24, 58, 116, 232) are no multiples of 16.
    """
    return math.gcd(16, *sizes)


def precision() -> str:
    """TF32 where PyTorch may use it; otherwise three TF32 products, whose error is that of fp32."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels-last for ``x`` whose channels are adjacent, also where it is a slice of the channels."""
    return torch.channels_last if x.stride(1) == 1 and not x.is_contiguous() else torch.contiguous_format


@triton.jit
def multiply_regions(
    x: tl.tensor,
    filters: tl.tensor,
    scale: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    y: tl.tensor,
    pixels: tl.tensor,
    image_pixels: tl.tensor,
    inner: tl.tensor,
    columns: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_pixel: tl.tensor,
    filter_group: tl.tensor,
    filter_region: tl.tensor,
    filter_row: tl.tensor,
    y_image: tl.tensor,
    y_channel: tl.tensor,
    y_pixel: tl.tensor,
    REGIONS: tl.constexpr,
    REGIONS_PAD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
) -> None:
    """y[p, k] = scale[b, r] * sum_c x[p, c] * filters[g, r, k, c] for the pixels p of one region r of one
    group g.
    """
    filter_group = filter_group // ALIGNMENT * ALIGNMENT
    filter_region, filter_row = filter_region // ALIGNMENT * ALIGNMENT, filter_row // ALIGNMENT * ALIGNMENT
    inner, columns = inner // ALIGNMENT * ALIGNMENT, columns // ALIGNMENT * ALIGNMENT
    if CHANNELS_LAST:
        x_image, x_pixel = x_image // ALIGNMENT * ALIGNMENT, x_pixel // ALIGNMENT * ALIGNMENT
        y_image, y_pixel = y_image // ALIGNMENT * ALIGNMENT, y_pixel // ALIGNMENT * ALIGNMENT

    tiles = tl.cdiv(pixels, BLOCK_PIXELS) + REGIONS
    tile = tl.program_id(0) % tiles
    group = tl.program_id(0) // tiles
    candidate = tl.arange(0, REGIONS_PAD)
    starts += group * (REGIONS + 1)
    start_of = tl.load(starts + candidate, mask=candidate < REGIONS, other=0)
    reached = (start_of // BLOCK_PIXELS + candidate <= tile) & (candidate < REGIONS)
    region = tl.sum(reached.to(tl.int32), 0) - 1
    start, end = tl.load(starts + region), tl.load(starts + region + 1)
    first = start + (tile - start // BLOCK_PIXELS - region) * BLOCK_PIXELS
    if first >= end:
        return

    offset = first + tl.arange(0, BLOCK_PIXELS)
    valid = offset < end
    pixel = tl.load(order + group.to(tl.int64) * pixels + offset, mask=valid, other=0)
    image = (pixel // image_pixels).to(tl.int64)
    position = (pixel % image_pixels).to(tl.int64)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = tl.arange(0, BLOCK_INNER)
    x_row = x + image * x_image + position * x_pixel
    filters += group.to(tl.int64) * filter_group + region * filter_region
    total = tl.zeros([BLOCK_PIXELS, BLOCK_COLUMNS], tl.float32)
    for done in range(0, inner, BLOCK_INNER):
        c = done + channel
        inside = c < inner
        values = tl.load(x_row[:, None] + c[None, :] * x_channel, mask=valid[:, None] & inside[None, :], other=0.0)
        if TRANSPOSED:  # noqa: SIM108 - a branch at compile time
            place = c[:, None] * filter_row + column[None, :]
        else:
            place = column[None, :] * filter_row + c[:, None]
        weights = tl.load(filters + place, mask=inside[:, None] & (column < columns)[None, :], other=0.0)
        total = tl.dot(values, weights, total, input_precision=PRECISION)
    if HAS_SCALE:
        total *= tl.load(scale + image * REGIONS + region, mask=valid, other=0.0)[:, None]
    target = y + (image * y_image + position * y_pixel)[:, None] + column[None, :] * y_channel
    tl.store(target, total.to(y.dtype.element_ty), mask=valid[:, None] & (column < columns)[None, :])


def multiply(x: Tensor, filters: Tensor, scale: Tensor | None, order: Tensor, starts: Tensor) -> Tensor:
    """Multiply each pixel by its region's filter.

    Args:
        x: (B, C, H, W).
        filters: (groups, M, O, C), any strides.
        scale: (B, M) fp32 contiguous, or None.
        order: pixels sorted by region, from ``sort_pixels``.
        starts: where the regions start, from ``sort_pixels``.

    Returns:
        (B, O, H, W) in the type and memory format of ``x``.
    """
    groups, regions, columns, inner = filters.shape
    batch, _, height, width = x.shape
    shape = (batch, columns, height, width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    if y.numel() == 0:
        return y
    x = flattened(x)
    transposed = filters.stride(3) != 1 and filters.stride(2) == 1
    if not transposed:
        filters = filters.contiguous()
    filter_strides = (*filters.stride()[:2], filters.stride(3 if transposed else 2))
    channels_last = x.stride(1) == 1 and y.stride(1) == 1
    pixel_strides = (*strides(x)[::2], *strides(y)[::2])
    pixels = order.shape[1]
    tile = product_tile(pixels // regions, inner, columns, x.element_size())
    grid = (groups * (triton.cdiv(pixels, tile.pixels) + regions), triton.cdiv(columns, tile.columns))
    multiply_regions[grid](
        x,
        filters,
        scale,
        order,
        starts,
        y,
        pixels,
        height * width,
        inner,
        columns,
        *strides(x),
        *filter_strides,
        *strides(y),
        regions,
        triton.next_power_of_2(regions),
        scale is not None,
        transposed,
        channels_last,
        alignment(inner, columns, *filter_strides, *(pixel_strides if channels_last else ())),
        precision(),
        tile.pixels,
        tile.columns,
        tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return y
