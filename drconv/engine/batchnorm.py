"""Re-estimation of batch-norm statistics over training batches with the final weights."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from drconv.config import Config
from drconv.distributed import all_reduce, world_size
from drconv.engine.freeze import is_frozen
from drconv.engine.step import autocast
from drconv.interfaces import Batch


@torch.no_grad()
def reestimate_batchnorm(task: nn.Module, batches: Iterable[Batch], config: Config, device: torch.device) -> None:
    """Replaces running means and variances by plain averages over the given batches.

    The ShuffleNet authors' last pass: momentum 1/n at the n-th batch, which is torch's ``momentum=None``. The ranks'
    averages are averaged.
    """
    norms = [module for module in task.modules() if isinstance(module, _BatchNorm) and not is_frozen(module)]
    layers = [norm for norm in norms if norm.track_running_stats]
    former = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
    task.train()
    with autocast(config, device):
        for batch in batches:
            task(batch)
    for layer, momentum in zip(layers, former, strict=True):
        layer.momentum = momentum
        for statistic in (layer.running_mean, layer.running_var):
            all_reduce(statistic).div_(world_size())  # type: ignore[arg-type]
