"""Evaluation: every sample once, whatever the batch size and the number of ranks."""

from collections.abc import Iterable
from typing import Any

import torch

from drconv.config import Config
from drconv.engine.contract import check_metrics
from drconv.engine.step import autocast
from drconv.interfaces import Batch, Dataset, Task


@torch.inference_mode()
def evaluate(
    task: Task[Any], name: str, dataset: Dataset, batches: Iterable[Batch], config: Config, device: torch.device
) -> dict[str, float]:
    """The task's metrics of an evaluation set, called ``name``, over the given batches, reduced over the ranks."""
    was_training = task.training
    task.eval()
    metric = task.new_metric(device, dataset)
    with autocast(config, device):
        for batch in batches:
            task.evaluate(batch, metric)
    task.train(was_training)
    return check_metrics(metric.compute(), name)


def full_names(metrics: dict[str, dict[str, float]]) -> dict[str, float]:
    """Metrics by evaluation set as records name them: ``<set>/<name>``."""
    return {f"{name}/{key}": value for name, values in metrics.items() for key, value in values.items()}
