"""The recipes' optimisers with their parameter groups."""

from fnmatch import fnmatchcase

import torch
from torch import nn

from drconv.config import OptimizerConfig
from drconv.errors import ConfigError

RMSPROP_DECAY = 0.9  # of the mean square, in both recipes


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Groups by weight decay and learning-rate factor.

    ``decay=matrices`` is the ShuffleNet authors' rule: weight decay on weights of more than one dimension, none on
    biases and batch norm. Guides form groups of their own, because a router often wants another rate and decay; the
    first of ``config.groups`` that a parameter's name matches goes before all that.

    Raises:
        ConfigError: no parameter matches one of ``config.groups``, or none is trained at all.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    unmatched = {group.match for group in config.groups}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        own = next((group for group in config.groups if fnmatchcase(name, group.match)), None)
        factor, decay = _by_kind(name, parameter, config)
        if own is not None:
            unmatched.discard(own.match)
            factor, decay = own.lr, decay if own.weight_decay is None else own.weight_decay
        groups.setdefault((factor, decay), []).append(parameter)
    if unmatched:
        names = ", ".join(name for name, _ in list(module.named_parameters())[:3])
        raise ConfigError(
            f"recipe.optimizer.groups: no parameter matches {', '.join(sorted(unmatched))}; names are such as {names}"
        )
    if not groups:
        raise ConfigError("no parameter of the task is trained: all are frozen; check the task and model.detector")
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": lr_factor}
        for (lr_factor, decay), parameters in groups.items()
    ]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """SGD as in all recipes of the paper; TensorFlow's RMSprop (Tieleman and Hinton) for those of the rows it quotes.

    timm's ``RMSpropTF`` has TensorFlow's three differences to torch's: eps below the root, a mean square that starts at
    1, and the learning rate inside the momentum.
    """
    if config.name == "rmsprop":
        from timm.optim import RMSpropTF

        groups = parameter_groups(module, config)
        return RMSpropTF(groups, lr=config.lr, alpha=RMSPROP_DECAY, eps=config.eps, momentum=config.momentum)
    return torch.optim.SGD(
        parameter_groups(module, config), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets each group's rate to ``lr`` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def _by_kind(name: str, parameter: nn.Parameter, config: OptimizerConfig) -> tuple[float, float]:
    """Learning-rate factor and weight decay of a parameter that no pattern names."""
    is_guide = "guide" in name.split(".")
    decay = config.weight_decay
    if is_guide and config.guide_weight_decay is not None:
        decay = config.guide_weight_decay
    if config.decay == "matrices" and (parameter.ndim < 2 or "bias" in name.split(".")[-1]):
        decay = 0.0
    return (config.guide_lr if is_guide else 1.0), decay
