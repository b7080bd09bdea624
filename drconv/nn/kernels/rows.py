"""Images as rows: what the filter sees at each output position, and the way back.

N = B Ho Wo positions, G groups, D = C/G K K numbers per group. A row holds its channels first and the K K taps as the
fastest part, as ``unfold`` gives them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn.kernels.geometry import Geometry
from drconv.nn.kernels.segments import Layout


def image_regions(mask: Tensor, regions: int) -> Tensor:
    """(B, P) regions to (N,) numbers b M + r."""
    if mask.shape[0] == 1:
        return mask.reshape(-1)
    return (mask + torch.arange(mask.shape[0], device=mask.device)[:, None] * regions).reshape(-1)


def taps(scale: Tensor | None) -> int:
    return 1 if scale is None or scale.dim() == 2 else scale.shape[2] * scale.shape[3]


def dot(left: Tensor, right: Tensor, taps: int) -> Tensor:
    """Inner products of rows per tap, (N, G, D) twice to (N, taps), in fp32 or fp64."""
    precise = torch.float64 if left.dtype == torch.float64 else torch.float32
    return (left.to(precise) * right).unflatten(2, (-1, taps)).sum((1, 2))


def gather_rows(rows: Tensor, mask: Tensor, scale: Tensor | None, layout: Layout) -> Tensor:
    """The scaled row of every slot (R, G, D)."""
    slots = rows.index_select(0, layout.source)
    if scale is None:
        return slots
    owners = image_regions(mask, scale.shape[1]).index_select(0, layout.source)
    return _times(slots, scale.reshape(-1, taps(scale)).index_select(0, owners))


def scale_rows(rows: Tensor, scale: Tensor | None, mask: Tensor) -> Tensor:
    """Each row times its region's scale (N, G, D)."""
    if scale is None:
        return rows
    owners = image_regions(mask, scale.shape[1])
    return _times(rows, scale.reshape(-1, taps(scale)).index_select(0, owners))


def _times(rows: Tensor, factors: Tensor) -> Tensor:
    """(N, G, D) times (N, taps), the taps being D's fastest part; in the type of the rows, rounded once."""
    taps = factors.shape[1]
    if taps == 1:
        return (rows * factors.unsqueeze(2)).to(rows.dtype)
    return (rows.unflatten(2, (-1, taps)) * factors[:, None, None]).to(rows.dtype).flatten(2)


def _is_pointwise(weight: Tensor, geometry: Geometry) -> bool:
    return weight.shape[4:] == (1, 1) and geometry.padding == (0, 0)


def to_rows(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """What the filter sees at every output position (N, G, D)."""
    groups = geometry.groups
    if _is_pointwise(weight, geometry):
        if geometry.stride != (1, 1):
            x = x[:, :, :: geometry.stride[0], :: geometry.stride[1]]
        return x.permute(0, 2, 3, 1).reshape(-1, groups, x.shape[1] // groups)
    columns = F.unfold(x, weight.shape[4:], geometry.dilation, geometry.padding, geometry.stride)
    return columns.transpose(1, 2).reshape(-1, groups, columns.shape[1] // groups)


def to_image(rows: Tensor, x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Adds every row to the pixels it was read from: the transpose of ``_to_rows``."""
    batch, channels, height, width = x.shape
    if _is_pointwise(weight, geometry):
        rows_high = (height - 1) // geometry.stride[0] + 1
        image = rows.view(batch, rows_high, -1, channels).permute(0, 3, 1, 2)
        if geometry.stride == (1, 1):
            return image.contiguous(memory_format=memory_format(x))
        gradient = torch.zeros_like(x)
        gradient[:, :, :: geometry.stride[0], :: geometry.stride[1]] = image
        return gradient
    columns = rows.reshape(batch, -1, rows.shape[1] * rows.shape[2]).transpose(1, 2)
    window = (weight.shape[4:], geometry.dilation, geometry.padding, geometry.stride)
    return F.fold(columns, (height, width), *window)


def memory_format(x: Tensor) -> torch.memory_format:
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def as_image(rows: Tensor, size: tuple[int, int, int], like: Tensor) -> Tensor:
    """(N, O) to (B, O, Ho, Wo) in the memory format of ``like``."""
    image = rows.view(*size, rows.shape[1]).permute(0, 3, 1, 2)
    return image.contiguous(memory_format=memory_format(like))
