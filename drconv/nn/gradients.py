"""Identities whose backward pass is not the identity: how gradients are weighted, without touching any output."""

from typing import Any

import torch
from torch import Tensor

from drconv.nn.kernels.transforms import is_transformed


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by ``factor``."""
    if is_transformed():
        return x.detach() + _nothing(x) * factor
    return _ScaleGradient.apply(x, factor)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def share_gradient(filters: Tensor, share: float) -> Tensor:
    """The filters (M, ...) themselves; one's gradient becomes ``(1 - share)`` its own plus ``share`` the sum of all.

    Under SGD, momentum included, this trains exactly the sums ``V_r = U + D_r`` of a filter U that all regions share,
    at ``share`` of the learning rate, and differences D_r at ``1 - share`` of it: what the regions have in common
    learns from every pixel, as in a standard convolution, what sets them apart from their own pixels (decision D11).
    0 is the printed form, 1 keeps the filters as far apart as they start.
    """
    if is_transformed():
        nothing = _nothing(filters)
        return filters.detach() + nothing.lerp(nothing.sum(0, keepdim=True), share)
    return _ShareGradient.apply(filters, share)


class _ShareGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, filters: Tensor, share: float) -> Tensor:
        ctx.share = share
        return filters.view_as(filters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.lerp(gradient, gradient.sum(0, keepdim=True), ctx.share), None


def _nothing(x: Tensor) -> Tensor:
    """Zeros with the derivative of x, in ordinary operations, which every transform has a rule for."""
    return (x - x.detach()).nan_to_num()
