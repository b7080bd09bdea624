"""The data sets of a run: one to train on, and those to evaluate on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch

from drconv import distributed
from drconv.config import Config
from drconv.data import Loader, eval_loader, train_loader
from drconv.engine.contract import check_evaluation_sets, check_fingerprint, check_samples
from drconv.interfaces import Batch, Dataset, Facts, Fingerprint, Task


@dataclass(frozen=True)
class Evaluation:
    """An evaluation set, and this rank's batches of it: gone through again and again, with the same processes."""

    name: str
    dataset: Dataset
    batches: Loader


class Data:
    """The sets that a task asks for; the training set is built when it is first used."""

    def __init__(self, config: Config, task: type[Task[Any]]) -> None:
        self.config = config
        self._task = task
        self._pin_memory = torch.cuda.is_available() and config.runtime.device != "cpu"
        self._loaders: WeakSet[Loader] = WeakSet()
        sets = check_evaluation_sets(task.evaluation_sets(config))
        self.evaluations = {name: self._evaluation(name, dataset) for name, dataset in sets.items()}

    def _evaluation(self, name: str, dataset: Dataset) -> Evaluation:
        loader = eval_loader(
            dataset,
            batch_size=self.config.recipe.eval_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=self.config.runtime.workers,
            pin_memory=self._pin_memory,
        )
        self._loaders.add(loader)
        return Evaluation(name, dataset, loader)

    def close(self) -> None:
        """Ends all loader processes."""
        for loader in list(self._loaders):
            loader.close()

    @cached_property
    def train(self) -> Dataset:
        dataset = self._task.train_set(self.config)
        check_samples(dataset, "train")
        return dataset

    @property
    def evaluation_facts(self) -> Facts:
        """Of the first evaluation set: what is known where nothing is trained."""
        return next(iter(self.evaluations.values())).dataset.facts

    def train_batches(self, start_step: int, end_step: int) -> Iterator[Batch]:
        """This rank's micro-batches of the steps ``start_step`` to ``end_step - 1``."""
        loader = train_loader(
            self.train,
            batch_size=self.config.recipe.batch_size,
            accumulate=self.config.runtime.accumulate,
            seed=self.config.seed,
            start_step=start_step,
            num_steps=end_step,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=self.config.runtime.workers,
            pin_memory=self._pin_memory,
        )
        self._loaders.add(loader)
        return iter(loader)

    @cached_property
    def fingerprints(self) -> dict[str, Fingerprint]:
        """Of all sets by name, for the resume state and the record."""
        sets = {"train": self.train} | {name: evaluation.dataset for name, evaluation in self.evaluations.items()}
        return {name: check_fingerprint(dataset.fingerprint(), name) for name, dataset in sets.items()}
