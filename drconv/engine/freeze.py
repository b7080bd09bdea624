"""Parts of a network that do not learn: their parameters, and the statistics of their norms."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from drconv.errors import ConfigError


def freeze(task: nn.Module, patterns: Sequence[str]) -> None:
    """Holds the parameters whose name fits a pattern, and keeps their layers' norms in evaluation mode.

    Before the optimiser is built and before the network is copied or wrapped.

    Raises:
        ConfigError: a pattern fits none.
    """
    names = [name for name, _ in task.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(f"recipe.freeze: no parameter fits {pattern}; names are such as {', '.join(names[:3])}")
    for name, parameter in task.named_parameters():
        if _fits(name, patterns):
            parameter.requires_grad_(False)
    for name, module in task.named_modules():
        if hasattr(module, "running_mean") and _fits(f"{name}.weight", patterns):
            module.register_forward_pre_hook(_stay_in_evaluation)


def is_frozen(module: nn.Module) -> bool:
    """Whether a norm keeps its statistics."""
    return _stay_in_evaluation in module._forward_pre_hooks.values()


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _stay_in_evaluation(module: nn.Module, inputs: Any) -> None:
    """Before each forward, as whoever trains a network calls ``train()`` again and again."""
    module.eval()
