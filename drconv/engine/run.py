"""One training run from its opening to its record: ranks, folder, first lines, result."""

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from drconv import distributed
from drconv.compose import as_yaml
from drconv.config import Config
from drconv.config_check import length_warnings, steps_of_run
from drconv.engine.data import Data
from drconv.engine.ranks import Ranks
from drconv.engine.run_folder import RunFolder
from drconv.engine.trainer import Trainer
from drconv.interfaces import Task
from drconv.nn.cost import NetworkCost
from drconv.results.make_record import circumstances, headline, run_record, write_json
from drconv.weights import OUTPUT_NAMES, load_weights, save_weights

COSTS = ("parameters", "multiply_adds", "paper_multiply_adds")


class Run:
    """Context of one rank. Entering joins the ranks and takes the folder; leaving gives both back."""

    def __init__(self, config: Config) -> None:
        assert config.run is not None  # filled by drconv.cli
        self.config = config
        self.folder = RunFolder(Path(config.run))
        self._ranks = Ranks(config)
        self.start: str | None = None  # what the network started from
        self.finished: float | None = None  # the headline metric of a run that is already complete

    @property
    def device(self) -> torch.device:
        return self._ranks.device

    def __enter__(self) -> Self:
        self._ranks.join()
        try:
            if not self.config.runtime.dry_run:
                self._open_folder()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ranks.close_data()
        self.folder.close()
        self._ranks.leave()

    def load_data(self) -> Data:
        """The data sets of the run's task; their loader processes end with the run."""
        return self._ranks.load_data()

    def _open_folder(self) -> None:
        result = distributed.on_main(lambda: self.folder.open(self.config))
        if result is None:
            return
        name, value = headline(self.config, result["metrics"])
        self.finished = value
        if distributed.is_main():
            print(f"{self.folder.path} holds this run, finished: {name} {value:.4g}; overwrite=true runs it again")

    def announce(self, data: Data) -> None:
        """The first lines of a run: data, recipe, configuration."""
        if not distributed.is_main():
            return
        config = self.config
        steps = steps_of_run(config, len(data.train))
        if config.recipe.note:
            print(f"note: {config.recipe.note}")
        evaluated = "; ".join(evaluation.dataset.describe() for evaluation in data.evaluations.values())
        print(f"data: {data.train.describe()}; evaluated on {evaluated}")
        print(
            f"recipe: {config.recipe.name}, {steps} steps of {config.recipe.batch_size} images over "
            f"{distributed.world_size()} x {self.device.type}, lr {config.recipe.optimizer.lr} "
            f"({config.recipe.schedule.name}), {config.runtime.precision}"
        )
        for warning in length_warnings(config, steps):
            print(f"warning: {warning}")
        if not config.runtime.dry_run:
            print(f"folder: {self.folder.path}")
        print(as_yaml(config), flush=True)

    def start_from(self, task: Task[Any]) -> None:
        """Loads ``weights=``, which must fit, or ``backbone=``, whose report is printed and recorded."""
        config = self.config
        if config.weights is not None:
            load_weights(Path(config.weights), task.network)
            self.start = f"weights: {config.weights}"
        if config.backbone is not None:
            self.start = f"backbone: {task.load_backbone(Path(config.backbone))}"
            if distributed.is_main():
                print(self.start)

    def record(self, trainer: Trainer, metrics: dict[str, dict[str, float]]) -> float:
        """Saves the weights and the record; returns the headline metric."""
        result = distributed.on_main(lambda: self._write(trainer, metrics))
        name, value = headline(self.config, result["metrics"])
        if distributed.is_main():
            if not math.isfinite(value):
                print(f"warning: {name} is not finite, so that no table can show this run")
            print(f"{name} {value:.4g} after {result['steps']} steps; record: {self.folder.result}", flush=True)
        trainer.log.close(result["metrics"])
        return value

    def _write(self, trainer: Trainer, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
        config, state = self.config, trainer.state
        self.folder.check_owned()
        about = {"steps": state.step, OUTPUT_NAMES: state.task.facts.output_names}
        weights = {kind: self.folder.weights(kind) for kind in metrics}
        for kind, task in state.evaluated().items():
            save_weights(weights[kind], task.network, about)
        cost = _cost(state.task)
        details = {
            "steps": state.step,
            "wall_time_s": round(state.elapsed_s, 1),
            "train": trainer.log.last_entry,
            "counts": trainer.log.totals,
            "data": trainer.data.fingerprints,
            "cost": None if cost is None else {key: getattr(cost, key) for key in COSTS},
            "start": self.start,
            "commits": trainer.commits,
        }
        if trainer.log.damaged_at:
            details["log_damaged_at"] = trainer.log.damaged_at
        conditions = circumstances(self.device, distributed.world_size())
        result = run_record(config, metrics, weights, details, conditions)
        write_json(self.folder.result, result)
        return result


def _cost(task: Task[Any]) -> NetworkCost | None:
    """What the task counts; a task from outside that cannot must not cost the record of a long run."""
    try:
        return task.cost()
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        print(f"warning: cost() of the task failed ({type(error).__name__}: {reason}), so that the record has none")
        return None
