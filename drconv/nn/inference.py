"""Inference in few calls: guide, generator, product, batch norm and activation of a DRConv as one operator.

At batch size 1 a call costs as much as the arithmetic of a small layer, hence also the look into the dictionaries.
"""

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from drconv.nn.kernels import select_layer
from drconv.nn.plain import is_plain, is_standard, is_transparent

ACTIVATIONS = {nn.ReLU: float("inf"), nn.ReLU6: 6.0}  # upper ends


def run_layer(
    conv: Any, x: Tensor, guide: Any, norm: nn.BatchNorm2d | None = None, limit: float | None = None
) -> tuple[Tensor, Tensor] | None:
    """The layer, and the norm and activation that follow it, in one call; None where no kernel does that.

    The layer, its generator and its guide are computed here only where they are exactly what their classes define
    (``is_plain``); hooks of the layer itself are its caller's affair.

    Args:
        conv: ``DRConv2d``.
        x: (B, C, H, W).
        guide: logits, or the ``Guide`` that makes them from x.
        norm: in evaluation mode, or None.
        limit: upper end of a ReLU that follows, or None for none.

    Returns:
        The output and the logits.
    """
    parameters, generator = conv._parameters, conv._modules.get("generator")
    # Not there are the parameters of a data-parallel replica, and those that a parametrization or pruning makes.
    if "weight" not in parameters or "bias" not in parameters or not (is_standard(conv) and conv.is_one_product):
        return None
    if x.dim() != 4 or x.shape[1] != conv.in_channels:
        return None  # to where the error says what is wrong
    run = select_layer(x, parameters["weight"])
    gate = _gate(generator)
    if run is None or gate is None:
        return None
    statistics = [] if norm is None else _statistics(norm)
    if not _is_uniform([gate[0], parameters["bias"], *statistics], x):
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
        *gate,
        parameters["bias"],
        statistics,
        0.0 if norm is None else norm.eps,
        conv.relu_limit if limit is None else limit,
        conv.packed.get(parameters["weight"]),
    )
    return y, made if logits is None else logits


def _gate(generator: Any) -> tuple[Tensor | None, Tensor | None, float] | None:
    """Weight, bias and peak of a generator that the operator can compute, nothing of none, None of any other."""
    if generator is None:
        return None, None, 1.0
    parameters = generator._parameters
    if not is_plain(generator) or "weight" not in parameters or "bias" not in parameters:
        return None
    if generator.extents is not None:  # it pools pictures without their padding
        return None
    return parameters["weight"], parameters["bias"], generator.peak


def _inner_guide(guide: Any, x: Tensor, regions: int) -> tuple[Tensor, list[Any], float] | None:
    """Filter, [mean, variance] and eps of a guide that the operator can compute itself, else None."""
    if not is_plain(guide) or guide.keep_logits or "weight" not in guide._parameters or not guide.is_pointwise:
        return None
    norm = guide._modules.get("norm")
    if norm is not None and not _is_own_norm(norm):
        return None
    filters, statistics = guide._parameters["weight"], [] if norm is None else _statistics(norm)[:2]
    if filters.shape[0] != regions or not _is_uniform([filters, *statistics], x):
        return None
    return filters, statistics, 0.0 if norm is None else norm.eps


def _is_own_norm(norm: nn.Module) -> bool:
    """Whether a guide's norm is what ``Guide`` builds, with running statistics in use."""
    is_affine = norm._parameters.get("weight") is not None or norm._parameters.get("bias") is not None
    return is_plain(norm) and not is_affine and not norm.training and _has_statistics(norm)


def _has_statistics(norm: nn.Module) -> bool:
    return norm._buffers.get("running_mean") is not None and norm._buffers.get("running_var") is not None


def _is_uniform(tensors: list[Tensor | None], x: Tensor) -> bool:
    """Whether all that are there have the type of x."""
    dtype = x.dtype
    for tensor in tensors:  # noqa: SIM110, all() over a generator takes longer than the rest
        if tensor is not None and tensor.dtype is not dtype:
            return False
    return True


def _statistics(norm: nn.Module) -> list[Any]:
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
    steps = [module for module in modules if type(module) is not nn.Identity or not is_plain(module)]
    position = 0
    while position < len(steps):
        module = steps[position]
        position += 1
        if is_transparent(module):
            x, guide = run_guided(module, x, guide)  # type: ignore[arg-type]
            continue
        takes_guide = getattr(module, "takes_guide", False)
        if takes_guide and is_plain(module):
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
        if not is_plain(module):
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
    is_affine = norm._parameters.get("weight") is not None and norm._parameters.get("bias") is not None
    return is_affine and _has_statistics(norm) and not norm.training and norm.num_features == conv.out_channels
