"""One training run from its opening to its record: ranks, folder, first lines, result."""

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from drconv import distributed
from drconv.config import Config
from drconv.config_check import length_warnings, steps_of_run
from drconv.engine.data import Data
from drconv.engine.next_steps import next_lines
from drconv.engine.ranks import Ranks
from drconv.engine.run_folder import RunFolder
from drconv.engine.trainer import Trainer
from drconv.errors import StoppedError
from drconv.interfaces import Task
from drconv.messages import one_line
from drconv.nn.cost import NetworkCost, count_parameters
from drconv.results.make_record import circumstances, headline, run_record, write_json
from drconv.run_status import FAILED, FINISHED, STOPPED, note_end
from drconv.weights import OUTPUT_NAMES, load_start, save_weights

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
            self._leave(failed=True)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ranks.close_data()
        self._note_end(error)
        self._leave(failed=kind is not None)

    def _leave(self, failed: bool) -> None:
        self.folder.close()
        self._ranks.leave(failed)

    def _note_end(self, error: BaseException | None) -> None:
        """How a run that was begun ended, for ``drconv status``."""
        if not self.folder.is_owned or self.finished is not None:
            return
        stopped = isinstance(error, StoppedError | KeyboardInterrupt)
        state = FINISHED if error is None else STOPPED if stopped else FAILED
        note_end(self.folder.path, state, "" if error is None else one_line(error) or repr(error))

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
        """The first lines of a run: data, recipe, folder, and where the whole configuration lies."""
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
            print(f"folder: {self.folder.path}, with the whole configuration in config.yaml", flush=True)

    def announce_network(self, task: Task[Any]) -> None:
        """The network with its cost, on the line below those of ``announce``."""
        if distributed.is_main():
            model, cost = self.config.model, _cost(task)
            parts = [f"{model.name} {model.width:g}x", *([] if model.conv == "standard" else [f"with {model.conv}"])]
            text = f"network: {' '.join(parts)}, {count_parameters(task.network) / 1e6:.2f}M parameters"
            if cost is not None:
                text += f", {cost.multiply_adds / 1e6:.1f}M multiply-adds at {cost.input_size[1]}x{cost.input_size[2]}"
            print(text, flush=True)

    def start_from(self, task: Task[Any]) -> None:
        """Loads ``weights=`` (all but a classifier for other classes) or ``backbone=`` (what fits); says what not."""
        config = self.config
        if config.weights is not None:
            report = load_start(Path(config.weights), task.network, task.facts.num_outputs)
            self.start = f"weights: {report if report.kept else config.weights}"
        if config.backbone is not None:
            self.start = f"backbone: {task.load_backbone(Path(config.backbone))}"
        if self.start is not None and distributed.is_main():
            print(self.start)

    def record(self, trainer: Trainer, metrics: dict[str, dict[str, float]]) -> float:
        """Saves the weights and the record; returns the headline metric."""
        result = distributed.on_main(lambda: self._write(trainer, metrics))
        name, value = headline(self.config, result["metrics"])
        if distributed.is_main():
            if not math.isfinite(value):
                print(f"warning: {name} is not finite, so that no table can show this run")
            print(f"{name} {value:.4g} after {result['steps']} steps; record: {self.folder.result}")
            for line in next_lines(self.config, value):
                print(line, flush=True)
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
