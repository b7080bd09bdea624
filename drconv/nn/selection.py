"""Which convolutions of a network are replaced, which cannot be, and which of them share a guide."""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from drconv.nn.kernels.geometry import Pair
from drconv.nn.plain import is_transparent, is_untouched

Layers = str | Iterable[str] | Callable[[str, nn.Module], bool] | None


def is_pointwise(name: str, module: nn.Module) -> bool:
    """Predicate for ``substitute``: the 1x1 convolutions without groups, which the paper replaces."""
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1


def select_layers(network: nn.Module, layers: Layers) -> dict[str, nn.Conv2d]:
    """Names and modules of the convolutions to replace, in the network's order.

    Args:
        network: the network.
        layers: names, glob patterns (``*`` also matches dots), or a predicate over name and module; patterns and
            predicates only see convolutions. None for the network's own list, its attribute ``replaceable_layers``.

    Raises:
        ValueError: nothing matches, a name does not exist, or a chosen layer cannot be replaced.
    """
    modules = {name: module for name, module in network.named_modules() if name}
    chosen = _choose(network, modules, layers)
    selected: dict[str, nn.Conv2d] = {}
    for name, module in modules.items():
        if name not in chosen:
            continue
        reason = reason_against(module)
        if reason is not None or not isinstance(module, nn.Conv2d):
            raise ValueError(f"{name} cannot be replaced: it {reason}; leave it out of layers")
        selected[name] = module
    if not selected:
        raise ValueError(f"no layer of {type(network).__name__} was chosen; {_offer(modules)}")
    return selected


def _choose(network: nn.Module, modules: dict[str, nn.Module], layers: Layers) -> set[str]:
    if layers is None:
        layers = getattr(network, "replaceable_layers", None)
        if layers is None:
            raise ValueError(
                f"{type(network).__name__} has no list replaceable_layers; give layers: names, patterns, or a "
                f"predicate such as drconv.nn.is_pointwise; {_offer(modules)}"
            )
    if callable(layers):
        return {name for name, module in modules.items() if isinstance(module, nn.Conv2d) and layers(name, module)}
    patterns = [layers] if isinstance(layers, str) else list(layers)
    return {name for pattern in patterns for name in _match(pattern, modules)}


def _match(pattern: str, modules: dict[str, nn.Module]) -> list[str]:
    if pattern in modules:
        return [pattern]
    convolutions = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    matches = [name for name in convolutions if fnmatchcase(name, pattern)]
    if not matches:
        near = difflib.get_close_matches(pattern, convolutions, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else _offer(modules)
        raise ValueError(f"layers={pattern!r} matches no convolution; {hint}")
    return matches


def _offer(modules: dict[str, nn.Module]) -> str:
    names = [name for name, module in modules.items() if isinstance(module, nn.Conv2d)]
    if not names:
        return "it has no Conv2d at all"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"its convolutions are {', '.join(names[:3])}{more}"


def reason_against(module: nn.Module) -> str | None:
    """Why a layer cannot be replaced, or None if it can."""
    if not isinstance(module, nn.Conv2d):
        return f"is a {type(module).__name__}, not a Conv2d"
    if isinstance(module, LazyModuleMixin):
        return "has no shape before its first forward (lazy)"
    if parametrize.is_parametrized(module) or not is_untouched(module):
        return "has a parametrization, hooks or a forward of its own, which would be lost"
    is_plain = type(module).forward is nn.Conv2d.forward
    if not is_plain or type(module)._conv_forward is not nn.Conv2d._conv_forward:
        return f"is a {type(module).__name__}, which computes something else than Conv2d"
    if module.padding_mode != "zeros":
        return f"pads with padding_mode={module.padding_mode!r}, and the replacement only knows zeros"
    if resolve_padding(module) is None:
        return f"pads one side more than the other (padding='same' with kernel_size={module.kernel_size})"
    return None


def resolve_padding(conv: nn.Conv2d) -> Pair | None:
    """Zeros on either side of rows and columns; None where the two sides differ."""
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        rows, columns = (
            dilation * (kernel - 1) for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)
        )
        return None if rows % 2 or columns % 2 else (rows // 2, columns // 2)
    return conv.padding[0], conv.padding[1]  # type: ignore[return-value]


def find_blocks(network: nn.Module, selected: Iterable[str]) -> dict[str, list[str]]:
    """Sequentials whose replaced convolutions share one guide or routing, with the names of these (D2).

    A convolution belongs to the nearest ``nn.Sequential`` that holds at least two convolutions in a row, nested
    Sequentials included. It must be a block and not a whole network: what else it holds, such as
    squeeze-and-excitation, has at most two convolutions and stands behind the first one. Blocks with a single
    replaced convolution, a convolution that stands in several places, and a network that is itself the Sequential, are
    left out.
    """
    modules = dict(network.named_modules())
    places = Counter(id(module) for _, module in network.named_modules(remove_duplicate=False))
    blocks: dict[str, list[str]] = {}
    for name in selected:
        if places[id(modules[name])] > 1:
            continue
        parent = name.rpartition(".")[0]
        while parent and _is_sequence(modules[parent]):
            if len(_chain(modules[parent])) > 1:
                if _is_block(modules[parent]):
                    blocks.setdefault(parent, []).append(name)
                break
            parent = parent.rpartition(".")[0]
    return {block: names for block, names in blocks.items() if len(names) > 1}


def first_convolution(block: nn.Module) -> nn.Module:
    """The convolution, or what took its place before, that sees the input of a block."""
    return _chain(block)[0]


def _is_sequence(module: nn.Module) -> bool:
    """Whether calling the module is calling its children one after the other."""
    return is_transparent(module) and is_untouched(module)


def _flatten(module: nn.Module) -> list[nn.Module]:
    if not _is_sequence(module):
        return [module]
    return [leaf for child in module.children() for leaf in _flatten(child)]


def _chain(module: nn.Module) -> list[nn.Module]:
    return [leaf for leaf in _flatten(module) if _is_convolution(leaf)]


def _is_convolution(module: nn.Module) -> bool:
    """A convolution, or what took a convolution's place before and has its attributes."""
    return isinstance(module, nn.Conv2d) or (hasattr(module, "in_channels") and hasattr(module, "kernel_size"))


def _is_block(module: nn.Module) -> bool:
    leaves = _flatten(module)
    is_convolution = [_is_convolution(leaf) for leaf in leaves]
    counts = [sum(isinstance(inner, nn.Conv2d) for inner in leaf.modules()) for leaf in leaves]
    behind = counts[: is_convolution.index(True)]
    taken = {"guide", "routing"} & {name for name, _ in module.named_children()}
    others = (count for count, is_own in zip(counts, is_convolution, strict=True) if not is_own)
    return not any(behind) and max(others, default=0) <= 2 and not taken
