"""Operations of our operators for ``torch.utils.flop_counter.FlopCounterMode``: two for each multiply-add.

Counted is what the kernels compute: one product per position forward; backward one for each region where the guide
learns (the input's gradient is among them), and one for the filters. Eager ``torch`` and ``reference`` consist of
operations that PyTorch counts itself.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

Shape = Sequence[int]
_OPERATORS = torch.ops.drconv


def _product(image: Shape, weight: Shape, positions: Shape) -> int:
    """Each position times one filter of weight (..., O, C/G, K, K)."""
    return 2 * image[0] * prod(positions) * prod(weight[-4:])


def _backward(x: Shape, weight: Shape, logits: Shape, needs: Sequence[bool]) -> int:
    needs_x, needs_weight, needs_logits, needs_scale = needs
    one = _product(x, weight, logits[2:])
    masked = one if needs_x or needs_scale else 0
    return (one * logits[1] if needs_logits else masked) + (one if needs_weight else 0)


def register_torch() -> None:
    """The operators that ``torch.compile`` and ``torch.export`` see."""

    @register_flop_formula(_OPERATORS.region_conv2d_torch)
    def _forward_flop(x: Shape, weight: Shape, logits: Shape, *rest: Any, **_: Any) -> int:
        return _product(x, weight, logits[2:])

    @register_flop_formula(_OPERATORS.region_conv2d_torch_backward)
    def _backward_flop(
        grad: Shape, x: Shape, weight: Shape, logits: Shape, scale: Any, geometry: Any, needs: list[bool], **_: Any
    ) -> int:
        return _backward(x, weight, logits, needs)


def register_cpu() -> None:
    """The operators of the C++ kernel."""

    @register_flop_formula(_OPERATORS.cpu_region_conv2d)
    def _forward_flop(x: Shape, weight: Shape, logits: Shape, *rest: Any, **_: Any) -> int:
        return _product(x, weight, logits[2:])

    @register_flop_formula(_OPERATORS.cpu_region_conv2d_backward)
    def _backward_flop(grad: Shape, x: Shape, weight: Shape, logits: Shape, scale: Any, *needs: bool, **_: Any) -> int:
        return _backward(x, weight, logits, needs)

    @register_flop_formula(_OPERATORS.cpu_drconv)
    def _layer_flop(
        x: Shape,
        weight: Shape,
        guide: Shape,
        has_logits: bool,
        guide_norm: Any,
        guide_eps: float,
        gate_weight: Shape | None,
        *rest: Any,
        **_: Any,
    ) -> int:
        positions, regions = x[2:], guide[1] if has_logits else guide[0]
        total = _product(x, weight, positions)
        if not has_logits:
            total += _product(x, guide, positions)
        if gate_weight is not None:
            total += 2 * x[0] * prod(gate_weight)
            if gate_weight[0] != weight[0] or weight[0] != regions:  # experts are mixed
                total += 2 * x[0] * regions * prod(weight)
        return total


def register_triton() -> None:
    """The operators on CUDA."""

    @register_flop_formula(_OPERATORS.triton_region_conv2d)
    def _product_flop(x: Shape, filters: Shape, *rest: Any, **_: Any) -> int:
        return 2 * x[0] * prod(x[2:]) * filters[2] * filters[3]

    @register_flop_formula(_OPERATORS.triton_filter_gradient)
    def _filter_flop(x: Shape, gradient: Shape, *rest: Any, **_: Any) -> int:
        return 2 * x[0] * prod(x[2:]) * x[1] * gradient[1]

    @register_flop_formula(_OPERATORS.triton_logits_gradient)
    def _guide_flop(x: Shape, gradient: Shape, filters: Shape, *rest: Any, **_: Any) -> int:
        return 2 * x[0] * prod(x[2:]) * filters[1] * filters[2] * filters[3]
