"""Triton: the pixels in the order of their regions, by a counting sort that never asks the host.

Pixels are sorted within *groups*: the whole batch is one group where the filters are static, every image is
one where the filters are per sample. N pixels per group, P per image; pixel n of the flattened batch is
position n % P of image n // P. Two launches: ``count_regions`` takes the mask (Eq. 5) and a histogram of
every block of pixels; ``place_pixels`` adds up the histograms before it and writes each pixel's number to
its place. The order within a region is the order of the pixels, so the result does not depend on timing.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from drconv.nn.kernels.pixels import flattened, strides

MAX_REGIONS = 32
_ONE_HOT_SIZE = 8192  # pixels x regions of a block; 64 registers a thread with four warps
HISTOGRAMS = 64  # blocks whose histograms are added up at once


@triton.jit
def count_regions(
    logits: tl.tensor,
    mask: tl.tensor,
    counts: tl.tensor,
    pixels: tl.tensor,
    image_pixels: tl.tensor,
    stride_image: tl.tensor,
    stride_region: tl.tensor,
    stride_pixel: tl.tensor,
    REGIONS: tl.constexpr,
    REGIONS_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Write the region of each pixel of a block (ties to the lowest) and the number of pixels in each region."""
    block, group = tl.program_id(0), tl.program_id(1)
    offset = block * BLOCK + tl.arange(0, BLOCK)
    valid = offset < pixels
    pixel = group.to(tl.int64) * pixels + offset
    image = pixel // image_pixels
    row = logits + image * stride_image + (pixel - image * image_pixels) * stride_pixel
    best = tl.load(row, mask=valid, other=0.0)
    region = tl.zeros([BLOCK], tl.int32)
    for candidate in range(1, REGIONS):
        value = tl.load(row + candidate * stride_region, mask=valid, other=float("-inf"))
        # NaN is above all numbers, as torch has it, and the first one stays.
        larger = (value > best) | ((value != value) & (best == best))
        region = tl.where(larger, candidate, region)
        best = tl.where(larger, value, best)
    tl.store(mask + pixel, region.to(tl.uint8), mask=valid)
    column = tl.arange(0, REGIONS_PAD)
    member = (region[:, None] == column[None, :]) & valid[:, None]
    count = tl.sum(member.to(tl.int32), 0)
    row_of_counts = (group * tl.num_programs(0) + block) * REGIONS
    tl.store(counts + row_of_counts + column, count, mask=column < REGIONS)


@triton.jit
def place_pixels(
    mask: tl.tensor,
    counts: tl.tensor,
    order: tl.tensor,
    starts: tl.tensor,
    pixels: tl.tensor,
    REGIONS: tl.constexpr,
    REGIONS_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    HISTOGRAMS: tl.constexpr,
) -> None:
    """Write the pixels of a block to their places; the first block of a group also writes where regions start."""
    block, group = tl.program_id(0), tl.program_id(1)
    blocks = tl.num_programs(0)
    column = tl.arange(0, REGIONS_PAD)
    total = tl.zeros([REGIONS_PAD], tl.int32)
    before = tl.zeros([REGIONS_PAD], tl.int32)
    for first in range(0, blocks, HISTOGRAMS):
        row = first + tl.arange(0, HISTOGRAMS)
        cell = (group * blocks + row)[:, None] * REGIONS + column[None, :]
        inside = (row < blocks)[:, None] & (column < REGIONS)[None, :]
        count = tl.load(counts + cell, mask=inside, other=0)
        total += tl.sum(count, 0)
        before += tl.sum(tl.where((row < block)[:, None], count, 0), 0)
    start = tl.cumsum(total, 0) - total

    offset = block * BLOCK + tl.arange(0, BLOCK)
    valid = offset < pixels
    pixel = group.to(tl.int64) * pixels + offset
    region = tl.load(mask + pixel, mask=valid, other=255).to(tl.int32)
    member = (region[:, None] == column[None, :]).to(tl.int32)
    place = tl.cumsum(member, 0) - 1 + (start + before)[None, :]
    place = tl.sum(member * place, 1)
    tl.store(order + group.to(tl.int64) * pixels + place, pixel.to(tl.int32), mask=valid)
    if block == 0:
        tl.store(starts + group * (REGIONS + 1) + column, start, mask=column < REGIONS)
        tl.store(starts + group * (REGIONS + 1) + REGIONS, pixels)


def block_of(pixels: int, padded_regions: int) -> int:
    """Pixels that one program sorts."""
    return min(1024, _ONE_HOT_SIZE // padded_regions, max(16, triton.next_power_of_2(pixels)))


def sort_pixels(logits: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Sort the pixels of each group by the region whose logit is highest.

    Args:
        logits: (B, M, H, W), any strides.
        groups: 1 to sort the whole batch, B to sort each image.

    Returns:
        ``order`` (groups, N) int32, numbers of the flattened batch's pixels; ``starts`` (groups, M + 1) int32, where in
        its group's order each region starts.
    """
    batch, regions, height, width = logits.shape
    logits = flattened(logits)
    pixels = batch * height * width // max(groups, 1)  # no image, no group
    padded = triton.next_power_of_2(regions)
    block = block_of(pixels, padded)
    grid = (triton.cdiv(pixels, block), groups)
    mask = logits.new_empty(groups * pixels, dtype=torch.uint8)
    counts = logits.new_empty((groups, grid[0], regions), dtype=torch.int32)
    order = logits.new_empty((groups, pixels), dtype=torch.int32)
    starts = logits.new_empty((groups, regions + 1), dtype=torch.int32)
    if order.numel() == 0:
        return order, starts.zero_()
    count_regions[grid](logits, mask, counts, pixels, height * width, *strides(logits), regions, padded, block)
    place_pixels[grid](mask, counts, order, starts, pixels, regions, padded, block, HISTOGRAMS)
    return order, starts
