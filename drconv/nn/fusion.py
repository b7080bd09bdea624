"""Fold batch norms into the convolutions before them, and ReLUs into DRConvs, for inference."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from drconv.nn.condconv import CondConv2d, Routing
from drconv.nn.conv import DRConv2d
from drconv.nn.deformable import DeformableKernelConv2d
from drconv.nn.guide import Guide
from drconv.nn.inference import ACTIVATIONS
from drconv.nn.local import LocalConv2d
from drconv.nn.plain import is_plain, is_untouched

_LEAVES = (DRConv2d, CondConv2d, LocalConv2d, DeformableKernelConv2d, Guide, Routing, nn.BatchNorm2d)


class _Tracer(fx.Tracer):
    """Symbolic tracing that looks into containers, but not into the layers of this package."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, _LEAVES) or super().is_leaf_module(module, name)


def fuse_for_inference(network: nn.Module) -> nn.Module:
    """Make a network ready for inference, in place: fewer modules, and filters packed for the CPU kernel.

    Every batch norm that directly follows a convolution or DRConv is folded into it: it multiplies and shifts each
    output channel, and so do a convolution's filter and bias; with DRConv it is every region's filter. A ReLU that
    follows a DRConv is applied where the kernel writes its output. Folded modules become ``nn.Identity``, so names
    stay, except for what they held.

    Only modules that are exactly ``nn.Conv2d``, ``DRConv2d``, ``nn.BatchNorm2d`` (or timm's with an activation),
    ``nn.ReLU`` or ``nn.ReLU6`` are folded: no subclasses, none with hooks, a parametrization or a patched ``forward``,
    none whose parameters the network also reads itself. All others stay as they are. If an error is raised, nothing has
    been changed; a second call finds nothing to fold and packs the filters anew.

    Args:
        network: in evaluation mode; it cannot be trained afterwards, and its filters should not be changed: changes in
            place that PyTorch does not count (through ``.data``, numpy or shared memory) need another call, as do all
            changes once the network was compiled.

    Returns:
        The network.

    Raises:
        RuntimeError: the network is in training mode.
        ValueError: its forward pass cannot be traced (``torch.fx``), or parameters to be folded do not fit together.
    """
    if network.training:
        raise RuntimeError("the network is in training mode; call network.eval() before fuse_for_inference(network)")
    if not isinstance(network, _LEAVES):
        changes = _Changes()
        try:
            _fold_norms(network, changes)
            _take_in_activations(network, changes)
        except Exception:
            changes.undo()
            raise
    for module in network.modules():
        if isinstance(module, DRConv2d) and module.is_one_product:
            module.packed.ask()
    return network.requires_grad_(False)


class _Changes:
    """Attributes that were set, and what they were before."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        self._before.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def replace(self, network: nn.Module, name: str, new: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        self.set(network.get_submodule(parent), child, new)

    def undo(self) -> None:
        for owner, name, value in reversed(self._before):
            setattr(owner, name, value)


def _fold_norms(network: nn.Module, changes: _Changes) -> None:
    graph, modules = _trace(network), _modules(network)
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    pairs = _neighbours(graph, modules, (nn.Conv2d, DRConv2d), _is_norm)
    pairs = [pair for pair in pairs if read.isdisjoint(pair) and _can_fold(modules[pair[0]], modules[pair[1]])]
    for first, second in pairs:
        for name, value in _fold(first, modules[first], modules[second]).items():
            changes.set(modules[first], name, nn.Parameter(value, requires_grad=False))
        changes.replace(network, second, _what_remains(modules[second]))


def _take_in_activations(network: nn.Module, changes: _Changes) -> None:
    modules = _modules(network)
    for first, second in _neighbours(_trace(network), modules, (DRConv2d,), lambda module: type(module) in ACTIVATIONS):
        changes.set(modules[first], "relu_limit", ACTIVATIONS[type(modules[second])])
        changes.replace(network, second, nn.Identity())


def _modules(network: nn.Module) -> dict[str, Any]:
    return dict(network.named_modules())


def _trace(network: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(network)
    except Exception as error:  # whatever a foreign forward pass raises when it meets no numbers
        reason = f"{error}".strip().splitlines()[0] if f"{error}".strip() else type(error).__name__
        raise ValueError(
            f"the forward pass of {type(network).__name__} cannot be traced ({reason}); fuse the parts that can be"
        ) from error


def _neighbours(
    graph: fx.Graph, modules: dict[str, Any], first: tuple[type, ...], is_second: Callable[[nn.Module], bool]
) -> list[tuple[str, str]]:
    """Names of untouched modules called once each, of which the second alone uses the first's output.

    A DRConv that has taken in a ReLU is no first one.
    """
    called: list[Any] = [node for node in graph.nodes if node.op == "call_module"]
    counts = Counter(id(modules[node.target]) for node in called)
    pairs = []
    for node in called:
        if not is_second(modules[node.target]) or not is_untouched(modules[node.target]) or len(node.args) != 1:
            continue
        before: Any = _input(node, modules)
        if (
            before.op == "call_module"
            and type(modules[before.target]) in first
            and is_plain(modules[before.target])
            and getattr(modules[before.target], "relu_limit", None) is None
            and counts[id(modules[node.target])] == counts[id(modules[before.target])] == 1
            and _is_only_use(before, node)
            and not _is_watched_between(before.target, node.target, modules)
        ):
            pairs.append((before.target, node.target))
    return pairs


def _is_watched_between(first: str, second: str, modules: dict[str, Any]) -> bool:
    """Whether hooks on the containers of one of the two alone see what passes between them."""
    apart = _containers(first) ^ _containers(second)
    return any(not is_untouched(modules[name]) for name in apart)


def _containers(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:depth]) for depth in range(len(parts))}


def _is_identity(module: nn.Module) -> bool:
    return type(module) is nn.Identity and is_plain(module)


def _input(node: fx.Node, modules: dict[str, Any]) -> fx.Node:
    """The node whose output this one takes, seen through identities."""
    before: Any = node.args[0]
    while before.op == "call_module" and _is_identity(modules[before.target]) and before.args:
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


def _is_norm(module: nn.Module) -> bool:
    """A batch norm as torch has it, or timm's that an activation follows."""
    return (type(module) is nn.BatchNorm2d and is_plain(module)) or _is_timm_norm(module)


def _is_timm_norm(module: nn.Module) -> bool:
    kind = type(module)
    is_known = kind.__module__.startswith("timm.") and kind.__name__ == "BatchNormAct2d"
    return is_known and is_untouched(module) and type(module.drop) is nn.Identity


def _can_fold(convolution: Any, norm: Any) -> bool:
    """Whether the norm uses running statistics of the convolution's channels."""
    has_statistics = norm.running_mean is not None and norm.running_var is not None
    return convolution.out_channels == norm.num_features and has_statistics and not norm.training


@torch.no_grad()
def _fold(name: str, convolution: nn.Conv2d | DRConv2d, norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """New parameters of the convolution: filters times the norm's factor, its shift in the bias.

    A DRConv is linear in its stack of filters, be they regions' or experts', and in the generator's bias.
    """
    channels = (convolution.out_channels,)
    per_channel = (convolution.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    if any(tensor is not None and tensor.shape != channels for tensor in per_channel):
        shapes = ", ".join("none" if tensor is None else str(tuple(tensor.shape)) for tensor in per_channel)
        raise ValueError(
            f"{name} and the batch norm behind it do not fit: bias, mean, variance, weight and bias are {shapes}; "
            f"each needs {channels}"
        )
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    one = torch.ones(channels[0], 1, 1, 1, dtype=mean.dtype, device=mean.device)
    factor, bias = fuse_conv_bn_weights(one, convolution.bias, mean, variance, norm.eps, norm.weight, norm.bias)
    folded = {
        "weight": (convolution.weight * factor).to(convolution.weight.dtype),
        "bias": bias.to(convolution.weight.dtype),
    }
    if isinstance(convolution, DRConv2d) and convolution.filter_bias is not None:
        folded["filter_bias"] = (convolution.filter_bias * factor).to(convolution.filter_bias.dtype)
    return folded


def _what_remains(norm: nn.Module) -> nn.Module:
    """The activation that timm's batch norms contain, else nothing."""
    return norm.act if _is_timm_norm(norm) else nn.Identity()  # type: ignore[return-value]
