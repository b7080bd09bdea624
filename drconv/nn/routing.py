"""Two other ways to teach a guide, on trial beside Eq. 7-8 (docs/evidence.md): a soft choice first, and the error."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drconv.nn.conv import DRConv2d
from drconv.nn.functional import region_conv2d
from drconv.nn.kernels.geometry import Geometry
from drconv.nn.kernels.reference import candidate_outputs

WRONG_SHARE = 0.3  # positions whose error is among the largest count as badly routed


@dataclass(frozen=True)
class RoutingTrial:
    """How a DRConv convolves in training mode, called with the progress of the training, 0 to 1.

    Attributes:
        soft_until: up to this share of the training a position's output is that of all regions, weighted by the
            softmax of its logits (at the price of M convolutions); from there on the choice is hard.
        error_loss: weight of the loss that judges the choice by the error, see ``judge_routing``.
        error_damping: factor there on the gradient of badly routed positions.
    """

    soft_until: float = 0.0
    error_loss: float = 0.0
    error_damping: float = 1.0

    def __call__(
        self, progress: float, x: Tensor, weight: Tensor, guide: Tensor, scale: Tensor | None, geometry: Geometry
    ) -> Tensor:
        if progress < self.soft_until:
            return _convolve_softly(x, weight, guide, scale, geometry)
        y = region_conv2d(x, weight, guide, scale=scale, **geometry._asdict())
        if self.error_loss == 0 and self.error_damping == 1:
            return y
        logits = guide if guide.shape[2:] == y.shape[2:] else F.interpolate(guide, y.shape[2:], mode="nearest")
        return judge_routing(y, logits, self.error_loss, self.error_damping)


def try_routing(network: nn.Module, soft_until: float, error_loss: float, error_damping: float) -> None:
    """Every DRConv of the network trains by this ``RoutingTrial``; where nothing is asked for, as before."""
    trial = RoutingTrial(soft_until, error_loss, error_damping)
    for module in network.modules():
        if isinstance(module, DRConv2d):
            module.trial = None if trial == RoutingTrial() else trial


def judge_routing(y: Tensor, logits: Tensor, weight: float, damping: float) -> Tensor:
    """y itself; in backward its gradient is taken for the error that tells well routed positions from others.

    After the routing loss and the damping of Spatial Mixture-of-Experts (Dryden and Hoefler, NeurIPS 2022, sections 2.2
    and 2.3). A position is badly routed where the norm of its gradient is among the largest ``WRONG_SHARE`` of the
    batch. The logits get the gradient of a binary cross-entropy whose targets are the chosen region where the choice
    was good, and all others where it was bad: summed over regions, averaged over positions, times ``weight``. The
    gradient of badly routed positions goes on multiplied by ``damping``.

    Args:
        y: (B, O, H, W).
        logits: (B, M, H, W).
    """
    return _JudgeRouting.apply(y, logits, weight, damping)


class _JudgeRouting(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, logits: Tensor, weight: float, damping: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.weight, ctx.damping = weight, damping
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (logits,) = ctx.saved_tensors
        error = gradient.float().norm(dim=1, keepdim=True)
        good = max(1, round((1 - WRONG_SHARE) * error.numel()))
        wrong = error > error.flatten().kthvalue(good).values
        regions = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1)
        target = ((logits.argmax(1, keepdim=True) == regions) != wrong).to(logits.dtype)
        judged = (logits.sigmoid() - target) * (ctx.weight / error.numel())
        return torch.where(wrong, gradient * ctx.damping, gradient), judged, None, None


def _convolve_softly(x: Tensor, weight: Tensor, guide: Tensor, scale: Tensor | None, geometry: Geometry) -> Tensor:
    """The sum over the regions of their outputs, each times the softmax of Eq. 7."""
    candidates = candidate_outputs(x, weight, scale, geometry)
    logits = guide if guide.shape[2:] == candidates.shape[3:] else F.interpolate(guide, candidates.shape[3:])
    return (logits.softmax(1).unsqueeze(2).to(x.dtype) * candidates).sum(1)
