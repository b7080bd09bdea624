"""Triton: the gradients of the filters, of the guide's logits and of the scale. None of them uses atomics."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drconv.nn.kernels.pixels import flattened, strides
from drconv.nn.kernels.triton_forward import Tile, alignment, block, precision, product_tile

_PROGRAMS = 256  # enough to fill the 108 to 132 multiprocessors of an A100 or an H100 twice
_MAX_SPLITS = 16


@triton.jit
def sum_filter_gradient(
    x: tl.tensor,
    gradient: tl.tensor,
    scale: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    result: tl.tensor,
    pixels: tl.tensor,
    image_pixels: tl.tensor,
    inner: tl.tensor,
    columns: tl.tensor,
    segments: tl.tensor,
    splits: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_pixel: tl.tensor,
    g_image: tl.tensor,
    g_channel: tl.tensor,
    g_pixel: tl.tensor,
    REGIONS: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
) -> None:
    """result[split, segment, o, c] = sum of scale[b, r] * gradient[p, o] * x[p, c] over a share of a region's
    pixels.
    """
    inner, columns = inner // ALIGNMENT * ALIGNMENT, columns // ALIGNMENT * ALIGNMENT
    if CHANNELS_LAST:
        x_image, x_pixel = x_image // ALIGNMENT * ALIGNMENT, x_pixel // ALIGNMENT * ALIGNMENT
        g_image, g_pixel = g_image // ALIGNMENT * ALIGNMENT, g_pixel // ALIGNMENT * ALIGNMENT

    segment, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    group, region = segment // REGIONS, segment % REGIONS
    starts += group * (REGIONS + 1) + region
    start, end = tl.load(starts), tl.load(starts + 1)
    order += group.to(tl.int64) * pixels
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channel = tl.program_id(2) * BLOCK_INNER + tl.arange(0, BLOCK_INNER)
    total = tl.zeros([BLOCK_COLUMNS, BLOCK_INNER], tl.float32)
    for first in range(start + split * BLOCK_PIXELS, end, splits * BLOCK_PIXELS):
        offset = first + tl.arange(0, BLOCK_PIXELS)
        valid = offset < end
        pixel = tl.load(order + offset, mask=valid, other=0)
        image = (pixel // image_pixels).to(tl.int64)
        position = (pixel % image_pixels).to(tl.int64)
        g = tl.load(
            gradient + (image * g_image + position * g_pixel)[None, :] + column[:, None] * g_channel,
            mask=valid[None, :] & (column < columns)[:, None],
            other=0.0,
        )
        values = tl.load(
            x + (image * x_image + position * x_pixel)[:, None] + channel[None, :] * x_channel,
            mask=valid[:, None] & (channel < inner)[None, :],
            other=0.0,
        )
        if HAS_SCALE:
            factor = tl.load(scale + image * REGIONS + region, mask=valid, other=0.0)
            g = (g.to(tl.float32) * factor[None, :]).to(values.dtype)
        total = tl.dot(g, values, total, input_precision=PRECISION)
    row = (split.to(tl.int64) * segments + segment) * columns + column
    inside = (column < columns)[:, None] & (channel < inner)[None, :]
    tl.store(result + row[:, None] * inner + channel[None, :], total.to(result.dtype.element_ty), mask=inside)


@triton.jit
def guide_gradient(
    x: tl.tensor,
    gradient: tl.tensor,
    filters: tl.tensor,
    logits: tl.tensor,
    scale: tl.tensor,
    logits_gradient: tl.tensor,
    scale_gradient: tl.tensor,
    image_pixels: tl.tensor,
    inner: tl.tensor,
    columns: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_pixel: tl.tensor,
    g_image: tl.tensor,
    g_channel: tl.tensor,
    g_pixel: tl.tensor,
    filter_image: tl.tensor,
    filter_region: tl.tensor,
    filter_row: tl.tensor,
    REGIONS: tl.constexpr,
    REGIONS_PAD: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_PIXELS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INNER: tl.constexpr,
) -> None:
    """Eq. 7 and 8 for a tile of pixels of one image, and the tile's share of the gradient of the scale.

    ``product[p, j] = <gradient[p], filters[j] x[p]>`` stays in registers; the candidates are summed over
    the output channels as they are made.
    """
    filter_image = filter_image // ALIGNMENT * ALIGNMENT
    filter_region, filter_row = filter_region // ALIGNMENT * ALIGNMENT, filter_row // ALIGNMENT * ALIGNMENT
    inner, columns = inner // ALIGNMENT * ALIGNMENT, columns // ALIGNMENT * ALIGNMENT
    if CHANNELS_LAST:
        x_image, x_pixel = x_image // ALIGNMENT * ALIGNMENT, x_pixel // ALIGNMENT * ALIGNMENT
        g_image, g_pixel = g_image // ALIGNMENT * ALIGNMENT, g_pixel // ALIGNMENT * ALIGNMENT

    tile, image = tl.program_id(0), tl.program_id(1)
    position = tile * BLOCK_PIXELS + tl.arange(0, BLOCK_PIXELS)
    valid = position < image_pixels
    region = tl.arange(0, REGIONS_PAD)
    x_row = x + image.to(tl.int64) * x_image + position * x_pixel
    g_row = gradient + image.to(tl.int64) * g_image + position * g_pixel
    filters += image.to(tl.int64) * filter_image
    product = tl.zeros([BLOCK_PIXELS, REGIONS_PAD], tl.float32)
    for candidate in range(0, REGIONS):
        partial = tl.zeros([BLOCK_PIXELS], tl.float32)
        for first in range(0, columns, BLOCK_COLUMNS):
            column = first + tl.arange(0, BLOCK_COLUMNS)
            total = tl.zeros([BLOCK_PIXELS, BLOCK_COLUMNS], tl.float32)
            for done in range(0, inner, BLOCK_INNER):
                channel = done + tl.arange(0, BLOCK_INNER)
                inside = channel < inner
                values = tl.load(
                    x_row[:, None] + channel[None, :] * x_channel,
                    mask=valid[:, None] & inside[None, :],
                    other=0.0,
                )
                weights = tl.load(
                    filters + candidate * filter_region + column[None, :] * filter_row + channel[:, None],
                    mask=inside[:, None] & (column < columns)[None, :],
                    other=0.0,
                )
                total = tl.dot(values, weights, total, input_precision=PRECISION)
            g = tl.load(
                g_row[:, None] + column[None, :] * g_channel,
                mask=valid[:, None] & (column < columns)[None, :],
                other=0.0,
            )
            partial += tl.sum(total * g.to(tl.float32), 1)
        product = tl.where((region == candidate)[None, :], partial[:, None], product)

    cell = (image.to(tl.int64) * REGIONS + region)[None, :] * image_pixels + position[:, None]
    inside = valid[:, None] & (region < REGIONS)[None, :]
    logit = tl.load(logits + cell, mask=inside, other=float("-inf"))
    logit = tl.where(valid[:, None], logit, 0.0)
    highest = tl.max(logit, 1)
    if HAS_SCALE:
        # The first NaN where there is one, as in the sort.
        is_none = (logit != logit).to(tl.int32)
        has_none = tl.max(is_none, 1) > 0
        is_highest = tl.where(has_none[:, None], is_none, (logit == highest[:, None]).to(tl.int32)) > 0
        chosen = tl.min(tl.where(is_highest, region[None, :], REGIONS_PAD), 1)
        own = tl.where((region[None, :] == chosen[:, None]) & valid[:, None], product, 0.0)
        row = (image * tl.num_programs(0) + tile) * REGIONS
        tl.store(scale_gradient + row + region, tl.sum(own, 0), mask=region < REGIONS)
        product *= tl.load(scale + image * REGIONS + region, mask=region < REGIONS, other=0.0)[None, :]
    share = tl.exp(logit - highest[:, None])
    share /= tl.sum(share, 1)[:, None]
    result = share * (product - tl.sum(share * product, 1)[:, None])
    tl.store(logits_gradient + cell, result, mask=inside)


def filter_gradient_tile(pixels_per_region: int, inner: int, columns: int, itemsize: int) -> Tile:
    """Sizes for ``sum_filter_gradient``; smaller ones spill with eight warps."""
    width, depth = block(columns, 64), block(inner, 64)
    return Tile(
        block(pixels_per_region, 64 // itemsize), width, depth, warps=8 if width * depth >= 4096 else 4, stages=3
    )


def filter_gradient(x: Tensor, gradient: Tensor, scale: Tensor | None, order: Tensor, starts: Tensor) -> Tensor:
    """Gradient of the filters through the hard mask, (groups, M, O, C) in the type of ``x``.

    The pixels of a region are shared out among as many programs as fill the device; their partial sums are
    added in a fixed order.
    """
    x, gradient = flattened(x), flattened(gradient)
    groups, regions = starts.shape[0], starts.shape[1] - 1
    inner, columns = x.shape[1], gradient.shape[1]
    if order.numel() == 0:
        return x.new_zeros((groups, regions, columns, inner))
    pixels = order.shape[1]
    tile = filter_gradient_tile(pixels // regions, inner, columns, x.element_size())
    blocks = (triton.cdiv(columns, tile.columns), triton.cdiv(inner, tile.inner))
    segments = groups * regions
    wanted = min(_PROGRAMS // (segments * blocks[0] * blocks[1]), triton.cdiv(pixels, tile.pixels))
    splits = max(1, min(_MAX_SPLITS, wanted))
    dtype = x.dtype if splits == 1 else torch.float32
    channels_last = x.stride(1) == 1 and gradient.stride(1) == 1
    pixel_strides = (*strides(x)[::2], *strides(gradient)[::2])
    result = x.new_empty((splits, groups, regions, columns, inner), dtype=dtype)
    sum_filter_gradient[(segments * splits, *blocks)](
        x,
        gradient,
        scale,
        order,
        starts,
        result,
        pixels,
        x.shape[2] * x.shape[3],
        inner,
        columns,
        segments,
        splits,
        *strides(x),
        *strides(gradient),
        regions,
        scale is not None,
        channels_last,
        alignment(inner, columns, *(pixel_strides if channels_last else ())),
        precision(),
        tile.pixels,
        tile.columns,
        tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return result[0] if splits == 1 else result.sum(0).to(x.dtype)


def logits_gradient(
    x: Tensor, gradient: Tensor, filters: Tensor, logits: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits (B, M, H, W) by Eq. 7 and 8 and of the scale (B, M), both fp32.

    The m products of the paper's backward, summed over the output channels as they are made; the softmax is
    computed again from the logits.
    """
    x, gradient, logits = flattened(x), flattened(gradient), logits.contiguous()
    regions, columns, inner = filters.shape[1:]
    batch, image_pixels = x.shape[0], x.shape[2] * x.shape[3]
    tile = product_tile(image_pixels, inner, columns, x.element_size())
    grid = (triton.cdiv(image_pixels, tile.pixels), batch)
    logits_result = torch.empty_like(logits)
    scale_result = logits.new_zeros((batch, grid[0], regions))
    if x.numel() == 0:
        return logits_result, scale_result.sum(1)
    filters = filters.contiguous()
    filter_strides = (0 if filters.shape[0] == 1 else filters.stride(0), *filters.stride()[1:3])
    channels_last = x.stride(1) == 1 and gradient.stride(1) == 1
    pixel_strides = (*strides(x)[::2], *strides(gradient)[::2])
    guide_gradient[grid](
        x,
        gradient,
        filters,
        logits,
        scale,
        logits_result,
        scale_result,
        image_pixels,
        inner,
        columns,
        *strides(x),
        *strides(gradient),
        *filter_strides,
        regions,
        triton.next_power_of_2(regions),
        scale is not None,
        channels_last,
        alignment(inner, columns, *filter_strides, *(pixel_strides if channels_last else ())),
        precision(),
        tile.pixels,
        tile.columns,
        tile.inner,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return logits_result, scale_result.sum(1)
