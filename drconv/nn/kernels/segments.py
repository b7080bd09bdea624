"""Products of sorted rows with one matrix per segment, without telling the host how long the segments are.

On a CPU the lengths are at hand and every segment is one product. Elsewhere the host must not wait for them: segments
are padded to whole blocks, whose number has a bound that does not depend on the data, and all blocks are one batched
product.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = (16, 256)  # fewest and most rows of a block
_RADIX = 32768


class Layout(NamedTuple):
    """Where sorted rows lie.

    source (R,) names the row in each of the R slots; slot (N,) the slot of each row. On a CPU R = N and ``lengths``
    are the segments'. Elsewhere ``owner`` (R / T,) is the segment of each block of T slots, and ``used`` (R,) tells
    the slots that hold a row.
    """

    source: Tensor
    slot: Tensor
    segments: int
    lengths: list[int] | None = None
    owner: Tensor | None = None
    used: Tensor | None = None


def sort(ids: Tensor, segments: int) -> Layout:
    """Sort rows by their segment, ``ids`` (N,) in [0, segments); rows of a segment keep their order."""
    if ids.device.type == "cpu":
        return _sort_exact(ids, segments)
    return _sort_padded(ids, segments)


def _sort_exact(ids: Tensor, segments: int) -> Layout:
    # torch sorts 32768 or more small integers by radix, ten times faster than fewer or wider ones by comparison.
    keys = ids.to(torch.uint8 if segments < 256 else torch.int32)
    padding = _RADIX - len(ids) if len(ids) > _RADIX // 8 else 0
    if padding > 0:
        keys = F.pad(keys, (0, padding), value=torch.iinfo(keys.dtype).max)
    source = keys.argsort(stable=True)[: len(ids)]
    slot = torch.empty_like(source).scatter_(0, source, torch.arange(len(source), device=ids.device))
    return Layout(source, slot, segments, lengths=torch.bincount(ids, minlength=segments).tolist())


def _sort_padded(ids: Tensor, segments: int) -> Layout:
    count = ids.shape[0]
    block = min(max(_BLOCK[0], 1 << (count // segments).bit_length()), _BLOCK[1])
    num_blocks = count // block + segments  # every segment wastes less than one block
    order = ids.argsort(stable=True)
    sorted_ids = ids.index_select(0, order)
    lengths = torch.searchsorted(sorted_ids, torch.arange(segments + 1, device=ids.device)).diff()
    blocks = (lengths + block - 1) // block
    end = blocks.cumsum(0)
    shift = (end - blocks) * block - (lengths.cumsum(0) - lengths)
    places = torch.arange(count, device=ids.device) + shift.index_select(0, sorted_ids)
    slot = torch.empty_like(order).scatter_(0, order, places)
    source = torch.zeros(num_blocks * block, dtype=torch.int64, device=ids.device).scatter_(0, places, order)
    used = torch.zeros_like(source, dtype=torch.bool).scatter_(0, places, True)
    owner = torch.searchsorted(end, torch.arange(num_blocks, device=ids.device), right=True)
    return Layout(source, slot, segments, owner=owner.clamp_(max=segments - 1), used=used)


def gather(rows: Tensor, layout: Layout) -> Tensor:
    """The row of every slot, zero in slots without one: (N, ...) to (R, ...)."""
    slots = rows.index_select(0, layout.source)
    if layout.used is None:
        return slots
    return slots * layout.used.view(-1, *[1] * (rows.dim() - 1))


def multiply(slots: Tensor, matrices: Tensor, layout: Layout) -> Tensor:
    """Each slot's row times its segment's matrix, per group: (R, G, D), (S, G, D, E) to (R, G, E)."""
    if layout.owner is not None:
        blocks = slots.unflatten(0, (len(layout.owner), -1)).transpose(1, 2)
        return (blocks @ matrices.index_select(0, layout.owner)).transpose(1, 2).flatten(0, 1)
    output = slots.new_empty(slots.shape[0], slots.shape[1], matrices.shape[3])
    for segment, piece in _pieces(layout):
        if slots.shape[1] == 1:
            torch.mm(slots[piece, 0], matrices[segment, 0], out=output[piece, 0])
        else:
            output[piece] = (slots[piece].transpose(0, 1) @ matrices[segment]).transpose(0, 1)
    return output


def outer(left: Tensor, right: Tensor, layout: Layout) -> Tensor:
    """Sum over each segment's rows of left^T right, per group: (R, G, E), (R, G, D) to (S, G, E, D)."""
    if layout.owner is not None:
        blocks = (len(layout.owner), -1)
        products = left.unflatten(0, blocks).permute(0, 2, 3, 1) @ right.unflatten(0, blocks).transpose(1, 2)
        # A product with the owners' indicator, because index_add is not deterministic on CUDA.
        segments = torch.arange(layout.segments, device=left.device)
        indicator = (layout.owner == segments[:, None]).to(left.dtype)
        return (indicator @ products.flatten(1)).view(layout.segments, *products.shape[1:])
    output = left.new_zeros(layout.segments, left.shape[1], left.shape[2], right.shape[2])
    for segment, piece in _pieces(layout):
        output[segment] = batch_multiply(left[piece].permute(1, 2, 0), right[piece].transpose(0, 1))
    return output


def batch_multiply(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, as a plain product where there is one pair: on a CPU that is faster than a batch of one."""
    if left.shape[:-2].numel() == right.shape[:-2].numel() == 1:
        product = left.reshape(left.shape[-2:]) @ right.reshape(right.shape[-2:])
        return product.view(*left.shape[:-1], right.shape[-1])
    return left @ right


def _pieces(layout: Layout) -> list[tuple[int, slice]]:
    """The segments that hold rows, each with its slots."""
    assert layout.lengths is not None
    pieces, first = [], 0
    for segment, length in enumerate(layout.lengths):
        if length:
            pieces.append((segment, slice(first, first + length)))
            first += length
    return pieces
