"""What a task, a metric, a data set and a batch are: all that the engine knows about them.

A run is one task on one training set and any number of named evaluation sets. ``docs/design.md`` shows how a task is
added; ``drconv.tasks.registry`` holds what is known of each without loading torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from drconv.config import Config
from drconv.errors import TaskError
from drconv.nn.cost import NetworkCost, count_cost
from drconv.nn.diagnostics import gradient_norms, region_statistics
from drconv.weights import LoadReport, load_backbone

Sample = dict[str, Any]  # one picture with its targets
Batch = dict[str, Any]  # tensors, or lists and dictionaries of them; ``drconv.data.to_device`` moves all
SampleKey = tuple[int, int]  # index, and the seed from which all of the sample's randomness comes
Fingerprint = dict[str, Any]  # what identifies data in resume states and records


@dataclass(frozen=True)
class Facts:
    """What a network is built from.

    Attributes:
        num_outputs: classes, or None where the data have none (evaluation sets of faces).
        input_size: rows and columns of the pictures, or None where they differ from picture to picture.
        output_names: of the classes, where they have names.
    """

    num_outputs: int | None
    input_size: tuple[int, int] | None
    output_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Raises a TaskError for numbers that no network can be built from."""
        if self.num_outputs is not None and not _is_length(self.num_outputs):
            raise TaskError(f"num_outputs={self.num_outputs!r} of the data's facts has to be 1 or more, or None")
        size: Any = self.input_size
        if size is not None and not (isinstance(size, tuple) and len(size) == 2 and all(map(_is_length, size))):
            raise TaskError(f"input_size={size!r} of the data's facts has to be (rows, columns), or None")


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


class Dataset(Protocol):
    """Samples by index and seed: the same key gives the same bits in every process.

    One whose pictures should share a micro-batch with their like has two more members: ``groups``, the group of every
    sample as a NumPy array, and ``group_size``, how many of a group stand together. One that can be evaluated with a
    network of more outputs has ``relabel(names)``: labels become positions in a longer list of names.
    """

    @property
    def facts(self) -> Facts: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...

    def collate(self, samples: list[Sample]) -> Batch: ...

    def describe(self) -> str:
        """One line for the log."""

    def fingerprint(self) -> Fingerprint: ...


class Metric(Protocol):
    """Takes batches in by a method of its own, which its task calls."""

    def compute(self) -> dict[str, float]:
        """The numbers over all ranks. Collective: every rank calls it, and it may gather."""


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gives the engine; all values are without dimensions, scalars and counts also plain numbers.

    Attributes:
        losses: summed and minimised; logged as means.
        scalars: logged as means over micro-batches, steps and ranks; each is there for every batch, as losses are.
        counts: whole numbers, logged as sums; those that a batch does not have are 0.
    """

    losses: dict[str, Tensor]
    scalars: dict[str, Tensor | float] = field(default_factory=dict)
    counts: dict[str, Tensor | int] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The sum of the losses."""
        losses = list(self.losses.values())
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


MetricType = TypeVar("MetricType", bound=Metric)


class Task(nn.Module, ABC, Generic[MetricType]):
    """A network with its data, loss, prediction and metrics.

    Parameters of a task that are not its network's (the class weights of a margin loss) are trained and kept in resume
    states with it; ``network`` alone is what is saved for inference.

    Args:
        network: gives ``facts.num_outputs`` outputs.
        config: of the run.
        facts: of the training set; in ``eval.py`` those of the first evaluation set.
    """

    def __init__(self, network: nn.Module, config: Config, facts: Facts) -> None:
        super().__init__()
        self.network = network
        self.facts = facts

    @staticmethod
    @abstractmethod
    def train_set(config: Config) -> Dataset:
        """The training set."""

    @staticmethod
    @abstractmethod
    def evaluation_sets(config: Config) -> dict[str, Dataset]:
        """The evaluation sets by name; their metrics are called ``<name>/<metric>``."""

    @abstractmethod
    def forward(self, batch: Batch) -> Outputs:
        """The losses of a batch of the training set."""

    @abstractmethod
    def new_metric(self, device: torch.device, dataset: Dataset) -> MetricType:
        """An empty metric for one pass over an evaluation set."""

    @abstractmethod
    def evaluate(self, batch: Batch, metric: MetricType) -> None:
        """Predicts a batch and adds it to the metric; not collective, as ranks can have different numbers of them."""

    def cost(self) -> NetworkCost | None:
        """Multiply-adds and parameters at the network's own input size, or at that of the data; None without any."""
        size = getattr(self.network, "input_size", self.facts.input_size)
        return None if size is None else count_cost(self.network, (3, *size))

    def sharded_parameters(self) -> set[str]:
        """Names of parameters of which each rank holds its own rows (``drconv.distributed.own_rows``).

        The engine does not average their gradients, saves them and their momentum whole, and cuts them on load.
        """
        return set()

    def expected_first_loss(self) -> float | None:
        """The loss of the first step where it is known; a run that begins far from it says so."""
        return None

    def load_backbone(self, path: Path) -> LoadReport:
        """Starts a part of the network from a file (``backbone=``)."""
        return load_backbone(path, self.network)

    def watch(self, optimizer: torch.optim.Optimizer) -> AbstractContextManager[dict[str, Any]] | None:
        """Diagnostics of one training step for the log, complete when the context ends: what guides do, by default.

        None watches nothing.
        """
        return _watch_regions(self, optimizer)


@contextmanager
def _watch_regions(task: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, Any]]:
    watched: dict[str, Any] = {}
    with region_statistics(task) as regions, gradient_norms(task, optimizer) as gradients:
        yield watched
    watched |= {name: value for name, value in (("regions", regions), ("gradients", gradients)) if value}
