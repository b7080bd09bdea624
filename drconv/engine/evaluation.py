"""Evaluation: every sample once, whatever the batch size and the number of ranks."""

from collections.abc import Iterable
from typing import Any

import torch

from drconv.config import Config
from drconv.engine.step import autocast
from drconv.interfaces import Batch, Dataset, Task


@torch.inference_mode()
def evaluate(
    task: Task[Any], dataset: Dataset, batches: Iterable[Batch], config: Config, device: torch.device
) -> dict[str, float]:
    """The task's metrics of an evaluation set over the given batches of it, reduced over the ranks."""
    was_training = task.training
    task.eval()
    metric = task.new_metric(device, dataset)
    with autocast(config, device):
        for batch in batches:
            task.evaluate(batch, metric)
    task.train(was_training)
    return metric.compute()


def full_names(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metrics by evaluation set as records name them: ``<set>/<name>``."""
    return {f"{name}/{key}": value for name, values in metrics.items() for key, value in values.items()}
