"""SGD with the recipes' parameter groups."""

import torch
from torch import nn

from drconv.config import OptimizerConfig


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Groups by weight decay and learning-rate factor.

    ``decay=matrices`` is the ShuffleNet authors' rule: weight decay on weights of more than one dimension, none on
    biases and batch norm. Guides form groups of their own, because a router often wants another rate and decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_guide = "guide" in name.split(".")
        decay = config.weight_decay
        if is_guide and config.guide_weight_decay is not None:
            decay = config.guide_weight_decay
        if config.decay == "matrices" and (parameter.ndim < 2 or "bias" in name.split(".")[-1]):
            decay = 0.0
        key = (config.guide_lr if is_guide else 1.0, decay)
        groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_factor": lr_factor}
        for (lr_factor, decay), parameters in groups.items()
    ]


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """SGD as in all recipes of the paper."""
    return torch.optim.SGD(
        parameter_groups(module, config), lr=config.lr, momentum=config.momentum, nesterov=config.nesterov
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets each group's rate to ``lr`` times the group's own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
