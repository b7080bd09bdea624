"""A task is a network with its loss, its prediction and its metric; the engine knows nothing else about it.

A task is an ``nn.Module`` with
    ``network``: the module whose weights are saved for inference;
    ``forward(batch) -> dict[str, Tensor]``: scalars, of which ``loss`` is minimised and all are logged as means;
    ``skipped``, the number of broken pictures in a batch, is summed up instead;
    ``evaluate(batch, metric)``: predicts a batch and adds it to the metric;
    ``new_metric(device)``: an object with ``compute() -> dict[str, float]``, reduced over the ranks;
    ``headline``: the name of the metric that tables show.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from drconv.config import Config
from drconv.tasks.classification import Classification

Batch = dict[str, Any]


class Metric(Protocol):
    def compute(self) -> dict[str, float]: ...


class Task(Protocol):
    network: nn.Module
    headline: str

    def __call__(self, batch: Batch) -> dict[str, Tensor]: ...
    def evaluate(self, batch: Batch, metric: Any) -> None: ...
    def new_metric(self, device: torch.device) -> Metric: ...


TASKS = {"classification": Classification}


def build_task(config: Config, network: nn.Module) -> Classification:
    """The task that ``recipe.task`` names, around a network."""
    return TASKS[config.recipe.task](network, config)
