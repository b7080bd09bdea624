"""The operators of the C++ kernel as PyTorch sees them: schemas, shapes and gradients.

They are known as soon as this module is imported, so that programs saved by ``torch.export`` can be loaded. The kernel
itself is built when an operator first runs; where it cannot be built, ordinary operations take its place.
"""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._prims_common import suggest_memory_format

from drconv.nn.kernels import cpu, flops
from drconv.nn.kernels import torch as torch_kernel
from drconv.nn.kernels.geometry import Geometry

_POINTWISE = Geometry((1, 1), (0, 0), (1, 1), 1)
# The C++ library defines these too where Python has not (a program without Python): keep both alike.
SCHEMAS = {
    "cpu_region_conv2d": "(Tensor x, Tensor weight, Tensor logits, Tensor? scale) -> Tensor",
    "cpu_region_conv2d_backward": (
        "(Tensor grad_y, Tensor x, Tensor weight, Tensor logits, Tensor? scale, bool needs_x, bool needs_weight, "
        "bool needs_logits, bool needs_scale) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "cpu_drconv": (
        "(Tensor x, Tensor weight, Tensor guide, bool has_logits, Tensor[] guide_norm, float guide_eps, "
        "Tensor? gate_weight, Tensor? gate_bias, float peak, Tensor? bias, Tensor[] norm, float eps, float? limit, "
        "Tensor? packed=None) -> (Tensor, Tensor)"
    ),
    "cpu_pack": "(Tensor weight) -> Tensor",
}
Layer = tuple[Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def _define(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: define an operator; what it decorates runs where the C++ kernel cannot."""
    torch.library.define(f"drconv::{name}", SCHEMAS[name], tags=torch.Tag.pt2_compliant_tag)
    operator = getattr(torch.ops.drconv, name).default

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if arguments[0].is_cpu and cpu.is_available():
                return operator(*arguments)  # to the C++ kernel, which loading has put before this one
            return plain(*arguments)

        # Below the kernels of devices, above nothing: the one for CPUs takes over when it is loaded.
        torch.library.impl(f"drconv::{name}", "CompositeExplicitAutograd")(run)
        return plain

    return decorate


@_define("cpu_region_conv2d")
def _forward(x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
    return torch_kernel.forward(x, weight, logits, scale, _POINTWISE)


@_define("cpu_region_conv2d_backward")
def _backward(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, *needs: bool) -> Gradients:
    gradients = torch_kernel.backward(grad, x, weight, logits, scale, _POINTWISE, needs)
    of_x, of_weight, of_logits, of_scale = (x.new_empty(0) if g is None else g for g in gradients)
    return of_x, of_weight, of_logits, of_scale


@_define("cpu_drconv")
def _layer(
    x: Tensor,
    weight: Tensor,
    guide: Tensor,
    has_logits: bool,
    guide_norm: list[Tensor],
    guide_eps: float,
    gate_weight: Tensor | None,
    gate_bias: Tensor | None,
    peak: float,
    bias: Tensor | None,
    norm: list[Tensor],
    eps: float,
    limit: float | None,
    packed: Tensor | None = None,
) -> Layer:
    """A whole layer in ordinary operations; ``kernels.select_layer`` has the arguments."""
    logits = guide if has_logits else F.conv2d(x, guide)
    if guide_norm:
        logits = F.batch_norm(logits, guide_norm[0], guide_norm[1], eps=guide_eps)
    made = x.new_empty(0) if has_logits else logits
    if logits.shape[2:] != x.shape[2:]:
        logits = F.interpolate(logits, x.shape[2:], mode="nearest")
    scale, filters, regions = None, weight.unsqueeze(0), logits.shape[1]
    if gate_weight is not None:
        gate = F.linear(x.mean((2, 3)), gate_weight, gate_bias).sigmoid() * peak
        if len(gate_weight) == len(weight) == regions:
            scale = gate
        else:
            mixed = gate.view(len(x) * regions, -1) @ weight.flatten(1)
            filters = mixed.view(len(x), regions, *weight.shape[1:])
    y = torch_kernel.forward(x, filters, logits, scale, _POINTWISE)
    if bias is not None:
        y = y + bias.view(-1, 1, 1)
    if norm:
        y = F.batch_norm(y, norm[0], norm[1], norm[2], norm[3], eps=eps)
    return (y if limit is None else y.clamp(0.0, limit)), made


@_define("cpu_pack")
def _pack(weight: Tensor) -> NoReturn:
    raise RuntimeError("filters are packed for the C++ kernel of DRConv only, which is not available here")


def _empty_output(x: Tensor, channels: int) -> Tensor:
    shape, layout = (x.shape[0], channels, *x.shape[2:]), suggest_memory_format(x)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


@torch.library.register_fake("drconv::cpu_region_conv2d")
def _(x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None) -> Tensor:
    return _empty_output(x, weight.shape[2])


@torch.library.register_fake("drconv::cpu_region_conv2d_backward")
def _(grad: Tensor, x: Tensor, weight: Tensor, logits: Tensor, scale: Tensor | None, *needs: bool) -> Gradients:
    none = x.new_empty(0)
    needs_x, needs_weight, needs_logits, needs_scale = needs
    return (
        torch.empty_like(x) if needs_x or needs_logits or needs_scale else none,
        torch.empty_like(weight) if needs_weight else none,
        torch.empty_like(logits) if needs_logits else none,
        torch.empty_like(scale) if scale is not None and (needs_logits or needs_scale) else none,
    )


@torch.library.register_fake("drconv::cpu_drconv")
def _(x: Tensor, weight: Tensor, guide: Tensor, has_logits: bool, *rest: Any) -> Layer:
    return _empty_output(x, weight.shape[1]), x.new_empty(0) if has_logits else _empty_output(x, guide.shape[0])


def _keep(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _first_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    gradients = torch.ops.drconv.cpu_region_conv2d_backward.default(grad, *ctx.saved_tensors, *needs)
    return tuple(gradient if is_needed else None for gradient, is_needed in zip(gradients, needs, strict=True))


def _second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError('the C++ kernel of DRConv has no second derivative; use kernel="reference" for it')


torch.library.register_autograd("drconv::cpu_region_conv2d", _first_derivative, setup_context=_keep)
torch.library.register_autograd("drconv::cpu_region_conv2d_backward", _second_derivative)
flops.register_cpu()
