"""The operator as the equations read: every candidate output, then the choice. Plain torch autograd.

It costs m convolutions and m times the memory. The other kernels are tested against it, and the cost counters and
exporters use it because it consists of ordinary torch operations.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from drconv.nn.kernels.geometry import Geometry, output_size
from drconv.nn.kernels.transforms import is_transformed


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
    """Eq. 4-8 as ``hard + soft - soft.detach()`` over the m candidate outputs.

    The forward value of that factor is the hard mask of Eq. 5; its gradient is the one of the softmax of Eq. 7, which
    makes the gradient of the logits the straight-through form of Eq. 7 and 8.
    """
    regions = weight.shape[1]
    choice = (logits.argmax(1, keepdim=True) == torch.arange(regions, device=x.device).view(-1, 1, 1)).to(x.dtype)
    is_differentiated = is_transformed() or (logits.requires_grad and torch.is_grad_enabled())
    if is_differentiated:
        soft = logits.softmax(1)
        # Zeros, also where the softmax is not a number: a logit of NaN or infinity chooses its region all the same.
        step = (soft - soft.detach()).where(soft == soft, 0)
        choice = choice + step.to(x.dtype)
    candidates = candidate_outputs(x, weight, scale, geometry)
    output = (choice.unsqueeze(2) * candidates).sum(1)
    # vmap knows no memory formats.
    if not is_transformed() and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return output.contiguous(memory_format=torch.channels_last)
    return output


def candidate_outputs(x: Tensor, weight: Tensor, scale: Tensor | None, geometry: Geometry) -> Tensor:
    """What each region's filter gives at every position, (B, M, O, H', W')."""
    out_channels, window = weight.shape[2], weight.shape[4:]
    stride, padding, dilation, groups = geometry
    filters = weight if scale is None else _scale_filters(weight, scale)
    taps = F.unfold(x, window, dilation, padding, stride)
    taps = taps.unflatten(1, (groups, taps.shape[1] // groups))  # (B, G, C/G K K, P)
    filters = filters.flatten(3).unflatten(2, (groups, out_channels // groups))  # (B or 1, M, G, O/G, C/G K K)
    candidates = torch.matmul(filters, taps.unsqueeze(1))  # (B, M, G, O/G, P)
    return candidates.flatten(2, 3).unflatten(3, output_size(x, weight, stride, padding, dilation))


def _scale_filters(weight: Tensor, scale: Tensor) -> Tensor:
    """The filters of every image, (B, M, O, C/G, K, K), in the type of ``weight``."""
    factor = scale[:, :, None, None, None, None] if scale.dim() == 2 else scale[:, :, None, None]
    return (factor * weight).to(weight.dtype)
