"""Fold batch norms into the convolutions before them, and ReLUs into DRConvs, for inference."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from drconv.nn.condconv import CondConv2d, Routing
from drconv.nn.conv import DRConv2d
from drconv.nn.deformable import DeformableKernelConv2d
from drconv.nn.guide import Guide
from drconv.nn.inference import ACTIVATIONS
from drconv.nn.local import LocalConv2d

_LEAVES = (DRConv2d, CondConv2d, LocalConv2d, DeformableKernelConv2d, Guide, Routing, nn.BatchNorm2d)


class _Tracer(fx.Tracer):
    """Symbolic tracing that looks into containers, but not into the layers of this package."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _LEAVES) or super().is_leaf_module(module, name)


def fuse_for_inference(network: nn.Module) -> nn.Module:
    """Fold every batch norm that directly follows a convolution or DRConv into it, in place.

    A batch norm multiplies and shifts each output channel, and so do a convolution's filter and bias; with DRConv it
    is every region's filter. A ReLU that follows a DRConv is applied where the kernel writes its output. Folded modules
    become ``nn.Identity``, so names stay, except for what they held.

    Args:
        network: in evaluation mode; it cannot be trained afterwards.

    Returns:
        The network.

    Raises:
        RuntimeError: the network is in training mode.
        ValueError: its forward pass cannot be traced (``torch.fx``).
    """
    if network.training:
        raise RuntimeError("the network is in training mode; call network.eval() before fuse_for_inference(network)")
    modules: dict[str, Any] = dict(network.named_modules())
    uses = Counter(id(parameter) for _, parameter in network.named_parameters(remove_duplicate=False))
    for first, second in _neighbours(_trace(network), modules, (nn.Conv2d, DRConv2d), nn.BatchNorm2d):
        convolution, norm = modules[first], modules[second]
        if _can_fold(convolution, norm) and uses[id(convolution.weight)] == 1:
            _fold(convolution, norm)
            _replace(network, modules, second, _what_remains(norm))
    for activation, limit in ACTIVATIONS.items():
        for first, second in _neighbours(_trace(network), modules, (DRConv2d,), activation):
            modules[first].relu_limit = limit
            _replace(network, modules, second, nn.Identity())
    return network.requires_grad_(False)


def _trace(network: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(network)
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"the forward pass of {type(network).__name__} cannot be traced ({error}); fuse the parts that can be"
        ) from error


def _neighbours(
    graph: fx.Graph, modules: dict[str, Any], first: tuple[type, ...], second: type
) -> Iterator[tuple[str, str]]:
    """Names of modules called once each, of which the second alone uses the first's output."""
    calls: list[Any] = [
        node for node in graph.nodes if node.op == "call_module" and not _is_identity(modules[node.target])
    ]
    counts = {node.target: sum(other.target == node.target for other in calls) for node in calls}
    for node in calls:
        if isinstance(modules[node.target], second):
            before: Any = _input(node, modules)
            if (
                before.op == "call_module"
                and isinstance(modules[before.target], first)
                and counts[node.target] == counts[before.target] == 1
                and _is_only_use(before, node)
            ):
                yield before.target, node.target


def _is_identity(module: nn.Module) -> bool:
    return isinstance(module, nn.Identity)


def _input(node: fx.Node, modules: dict[str, Any]) -> fx.Node:
    """The node whose output this one takes, seen through identities."""
    before: Any = node.args[0] if node.args else next(iter(node.kwargs.values()))
    while before.op == "call_module" and _is_identity(modules[before.target]):
        before = before.args[0]
    return before


def _is_only_use(before: fx.Node, node: fx.Node) -> bool:
    """Whether the way from ``before`` to ``node`` has no branch."""
    step = before
    while step is not node:
        if len(step.users) != 1:
            return False
        step = next(iter(step.users))
    return True


def _can_fold(convolution: Any, norm: Any) -> bool:
    """Channels fit, the norm uses running statistics, and nothing makes the filters or watches the modules."""
    has_hooks = any(m._forward_pre_hooks or m._forward_hooks for m in (convolution, norm))
    return (
        convolution.out_channels == norm.num_features
        and norm.running_var is not None
        and not norm.training
        and "weight" in convolution._parameters
        and not has_hooks
    )


@torch.no_grad()
def _fold(convolution: nn.Conv2d | DRConv2d, norm: nn.BatchNorm2d) -> None:
    """Multiply the filters by the norm's factor and put its shift into the bias.

    A DRConv is linear in its stack of filters, be they regions' or experts', and in the generator's bias.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    weight = convolution.weight if convolution.weight.dim() == 4 else convolution.weight[0]
    one = torch.ones_like(weight)
    factor, bias = fuse_conv_bn_weights(one, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    column = factor[:, :1, :1, :1]
    convolution.weight.copy_(convolution.weight * column)
    if isinstance(convolution, DRConv2d) and convolution.filter_bias is not None:
        convolution.filter_bias.copy_(convolution.filter_bias * column)
    convolution.bias = nn.Parameter(bias.detach())


def _what_remains(norm: nn.Module) -> nn.Module:
    """The activation that timm's batch norms contain, else nothing."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity()


def _replace(network: nn.Module, modules: dict[str, Any], name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)
    modules[name] = new
