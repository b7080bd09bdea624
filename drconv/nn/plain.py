"""Whether a module is exactly the plain thing, so that its work may be done elsewhere without calling it.

Fusion and the fast path without gradients ask this one question of every module they pass over.
"""

from typing import TypeVar

from torch import nn
from torch.nn.modules import module as _torch

_Kind = TypeVar("_Kind", bound=type[nn.Module])

_FORWARDS: dict[type[nn.Module], object] = {
    kind: kind.forward for kind in (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.Identity)
}


def standard(kind: _Kind) -> _Kind:
    """Class decorator: instances of this very class, left as they are, count as plain."""
    _FORWARDS[kind] = kind.forward
    return kind


def is_standard(module: nn.Module) -> bool:
    """Whether the module's class is one of those known, as it was defined: no subclass, no other ``forward``."""
    kind = type(module)
    return _FORWARDS.get(kind) is kind.forward  # classes that are not known have no None for a forward


def is_transparent(module: nn.Module) -> bool:
    """Whether a module is a sequence that is gone through, not called, so that layers in it get a shared input."""
    return type(module).forward is nn.Sequential.forward and "forward" not in module.__dict__


def is_plain(module: nn.Module) -> bool:
    """Whether calling the module is nothing but running the ``forward`` of its class as that was defined.

    No subclass (a parametrised module is one), no ``forward`` that was replaced, no hooks, neither its own (pruning and
    the old weight norm are hooks too) nor those of all modules.
    """
    return is_standard(module) and is_untouched(module)


def is_untouched(module: nn.Module) -> bool:
    """Whether calling the module calls the ``forward`` of its class and nothing else."""
    return (
        "forward" not in module.__dict__
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
        and not _torch._has_any_global_hook()
    )
