"""The two data sets of a run."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any
from weakref import WeakSet

import torch

from drconv import distributed
from drconv.config import Config
from drconv.data import Loader, PictureDataset, build_dataset, eval_loader, train_loader
from drconv.errors import ConfigError


class Data:
    """Training and validation set with the same classes; the training set is built when it is first used."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.val = build_dataset(config.data, "val", config.seed)
        self.num_classes = len(self.val.classes)
        expected = config.data.num_classes
        if expected is not None and expected != self.num_classes:
            raise ConfigError(
                f"{self.val.source.name} has {self.num_classes} classes, data.num_classes says {expected}; "
                f"correct one of them (null counts the folders)"
            )
        self._pin_memory = torch.cuda.is_available() and config.runtime.device != "cpu"
        # The validation batches of this rank; gone through again and again, with the same loader processes.
        self.val_batches = eval_loader(
            self.val,
            batch_size=config.recipe.eval_batch_size,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            workers=config.runtime.workers,
            pin_memory=self._pin_memory,
        )
        self._loaders: WeakSet[Loader] = WeakSet([self.val_batches])

    def close(self) -> None:
        """Ends all loader processes."""
        for loader in list(self._loaders):
            loader.close()

    @cached_property
    def train(self) -> PictureDataset:
        return build_dataset(self.config.data, "train", self.config.seed)

    def train_batches(self, start_step: int, end_step: int) -> Iterator[dict[str, Any]]:
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
    def fingerprints(self) -> dict[str, Any]:
        """Of both sets, for the resume state and the record."""
        return {"train": self.train.fingerprint(), "val": self.val.fingerprint()}
