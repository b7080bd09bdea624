"""Inference in few calls: guide, generator, product, batch norm and activation of a DRConv as one operator.

At batch size 1 a call costs as much as the arithmetic of a small layer, hence also the look into the dictionaries.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from drconv.nn.kernels import select_layer

ACTIVATIONS = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}  # upper ends


def run_layer(
    conv: Any, x: Tensor, guide: Any, norm: nn.BatchNorm2d | None = None, limit: float | None = None
) -> tuple[Tensor, Tensor] | None:
    """The layer, and the norm and activation that follow it, in one call; None where no kernel does that.

    Args:
        conv: ``DRConv2d``.
        x: (B, C, H, W).
        guide: logits, or the ``Guide`` that makes them from x.
        norm: in evaluation mode, or None.
        limit: upper end of a ReLU that follows, or None for none.

    Returns:
        The output and the logits.
    """
    if not conv.is_plain or _is_altered(conv):
        return None
    parameters, generator = conv._parameters, conv._modules.get("generator")
    if generator is not None and (
        not has_own_forward(generator) or _is_watched(generator) or generator.extents is not None
    ):
        return None
    run = select_layer(x, parameters["weight"])
    gate, peak = ({}, 1.0) if generator is None else (generator._parameters, generator.peak)
    statistics = [] if norm is None else _statistics(norm)
    tensors = [gate.get("weight"), parameters.get("bias"), *statistics]
    if run is None or not _is_uniform(tensors, x):
        return None
    logits = guide if isinstance(guide, Tensor) else None
    own = _inner_guide(guide, x, conv.regions) if logits is None else None
    if own is None:
        logits = guide(x) if logits is None else logits
        if logits.dim() != 4 or logits.shape[1] != conv.regions or logits.shape[0] != x.shape[0]:
            return None  # to where the error says what is wrong
        logits = logits.to(x.dtype)
    source, guide_statistics, guide_eps = own or (logits, [], 0.0)
    y, made = run(
        x,
        parameters["weight"],
        source,
        own is None,
        guide_statistics,
        guide_eps,
        gate.get("weight"),
        gate.get("bias"),
        peak,
        parameters.get("bias"),
        statistics,
        0.0 if norm is None else norm.eps,
        conv.relu_limit if limit is None else limit,
    )
    return y, made if logits is None else logits


def _inner_guide(guide: Any, x: Tensor, regions: int) -> tuple[Tensor, list[Any], float] | None:
    """Filter, [mean, variance] and eps of a guide that the operator can compute itself, else None."""
    if not has_own_forward(guide):
        return None
    norm = guide._modules.get("norm")
    if guide.keep_logits or _is_watched(guide) or not guide.is_pointwise or not (norm is None or _is_own_norm(norm)):
        return None
    filters, statistics = guide._parameters["weight"], [] if norm is None else _statistics(norm)[:2]
    if filters.shape[0] != regions or not _is_uniform([filters, *statistics], x):
        return None
    return filters, statistics, 0.0 if norm is None else norm.eps


def _is_own_norm(norm: nn.Module) -> bool:
    """Whether a guide's norm is what ``Guide`` builds, with running statistics in use."""
    is_own = has_own_forward(norm) and norm._parameters["weight"] is None and not _is_watched(norm)
    return is_own and not norm.training and norm._buffers["running_mean"] is not None


def _is_uniform(tensors: list[Tensor | None], x: Tensor) -> bool:
    """Whether all that are there have the type of x."""
    dtype = x.dtype
    for tensor in tensors:  # noqa: SIM110, all() over a generator takes longer than the rest
        if tensor is not None and tensor.dtype is not dtype:
            return False
    return True


def _statistics(norm: nn.BatchNorm2d) -> list[Any]:
    parameters, buffers = norm._parameters, norm._buffers
    return [buffers["running_mean"], buffers["running_var"], parameters["weight"], parameters["bias"]]


def run_guided(modules: Iterable[nn.Module], x: Tensor, guide: Any) -> tuple[Tensor, Any]:
    """What ``GuidedSequential`` does, with batch norms and ReLUs taken into the DRConvs before them.

    Args:
        modules: in their order.
        x: (B, C, H, W).
        guide: logits; or the ``Guide``, for which x is the block's input.

    Returns:
        The output and the logits.
    """
    # Identities are what fusion leaves behind.
    steps = [module for module in modules if type(module) is not nn.Identity or _is_watched(module)]
    position = 0
    while position < len(steps):
        module = steps[position]
        position += 1
        if type(module).forward is nn.Sequential.forward:
            x, guide = run_guided(module, x, guide)  # type: ignore[arg-type]
            continue
        takes_guide = getattr(type(module), "takes_guide", False) and module.takes_guide
        if takes_guide and has_own_forward(module) and not _is_watched(module):
            norm, limit, count = _tail(module, steps[position : position + 2])
            result = run_layer(module, x, guide, norm, limit)
            if result is not None:
                x, guide = result
                position += count
                continue
        guide = guide if isinstance(guide, Tensor) else guide(x)
        x = module(x, guide) if takes_guide else module(x)
    return x, guide


def _tail(conv: Any, following: list[nn.Module]) -> tuple[nn.BatchNorm2d | None, float | None, int]:
    """The norm, the ReLU's upper end, and how many modules they are."""
    if conv.relu_limit is not None:
        return None, None, 0
    norm, limit, count = None, None, 0
    for module in following:
        if _is_watched(module):
            break
        if norm is None and type(module) is nn.BatchNorm2d and _can_join(module, conv):
            norm = module
        elif type(module) in ACTIVATIONS:
            limit = ACTIVATIONS[type(module)]
        else:
            break
        count += 1
        if limit is not None:
            break
    return norm, limit, count


def _can_join(norm: nn.BatchNorm2d, conv: Any) -> bool:
    """Whether the norm only multiplies and shifts the layer's channels."""
    is_complete = norm._parameters["weight"] is not None and norm._buffers["running_var"] is not None
    return is_complete and not norm.training and norm.num_features == conv.out_channels


def _is_plain_gate(generator: Any) -> bool:
    """Whether a generator pools the whole map, and nothing waits for its call."""
    return has_own_forward(generator) and not _is_watched(generator) and generator.extents is None


def has_own_forward(module: nn.Module) -> bool:
    """Whether a module computes what the class of its place does: no other module, no subclass that overrides it."""
    return getattr(type(module), "own_forward", None) is type(module).forward


def _is_watched(module: nn.Module) -> bool:
    """Whether the module must be called, because hooks wait for it or its parameters are made on the way."""
    return bool(module._forward_hooks) or _is_altered(module)


def _is_altered(module: nn.Module) -> bool:
    """Whether a parametrization, a hook before the call (pruning, old weight norm) or another ``forward`` is set."""
    is_made = bool(module._forward_pre_hooks) or "parametrizations" in module._modules
    return is_made or "forward" in module.__dict__
