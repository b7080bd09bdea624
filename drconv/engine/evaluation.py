"""Evaluation: every sample once, whatever the batch size and the number of ranks."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn

from drconv.config import Config
from drconv.engine.step import autocast


@torch.inference_mode()
def evaluate(
    task: nn.Module,
    batches: Iterable[dict[str, Any]],
    config: Config,
    device: torch.device,
    limit: int | None = None,
) -> dict[str, float]:
    """The task's metrics over all batches (or the first ``limit``), reduced over the ranks."""
    was_training = task.training
    task.eval()
    metric = task.new_metric(device)  # type: ignore[operator]
    with autocast(config, device):
        for batch in islice(batches, limit):
            task.evaluate(batch, metric)  # type: ignore[operator]
    task.train(was_training)
    return metric.compute()
