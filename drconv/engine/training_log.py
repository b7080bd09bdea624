"""What a training run says and keeps of its steps: means over intervals, log lines, ``metrics.jsonl``, its mirror."""

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from drconv import distributed
from drconv.config import Config
from drconv.engine.contract import check_same_names
from drconv.engine.metrics_log import MetricsLog
from drconv.engine.progress import Progress
from drconv.engine.run_folder import RunFolder
from drconv.engine.step import StepLog
from drconv.engine.tensorboard_mirror import TensorBoardMirror
from drconv.engine.wandb_mirror import WandbMirror


class TrainingLog:
    """Sums up steps on the device and writes an entry every ``logging.every`` steps; files are rank 0's alone.

    Attributes:
        last_entry: the last training entry.
        totals: counts of all steps and ranks so far.
    """

    def __init__(self, config: Config, num_steps: int, device: torch.device) -> None:
        self.config = config
        self.num_steps = num_steps
        self.device = device
        self.last_entry: dict[str, Any] = {}
        self.totals: dict[str, int] = {}
        self._sums: dict[str, Tensor] = {}  # of the means since the last entry
        self._counts: dict[str, Tensor] = {}  # since the last entry
        self._steps = 0  # since the last entry
        self.damaged_at: list[int] = []  # steps at which a start found entries of the file gone or changed
        self._saved_file: dict[str, Any] | None = None
        self._first_bad = torch.full((), math.inf, device=device)  # first step whose loss was not finite
        self._file: MetricsLog | None = None
        self._mirrors: list[WandbMirror | TensorBoardMirror] = []

    def open(self, folder: RunFolder, step: int, evaluates_first: bool) -> None:
        """Begins to write, at the step that the run continues with."""
        self._folder = folder
        self.progress = Progress(self.num_steps, step, self.config.recipe.batch_size, self.device)
        if distributed.is_main():
            self._file = MetricsLog(folder.metrics, self._saved_file, step, evaluates_first)
            self._mirrors = [WandbMirror(self.config, folder.path)]
            if self.config.logging.tensorboard:
                self._mirrors.append(TensorBoardMirror(folder.path, step))
            if self._file.is_damaged:
                self.damaged_at.append(step)
                self.progress.say(
                    f"warning: {folder.metrics} lost entries that were there at step {step}; result.json will say so"
                )

    def close(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Ends the mirrors."""
        for mirror in self._mirrors:
            mirror.finish(summary, exit_code)

    def show(self, make: Callable[[], dict[str, Image]]) -> None:
        """Gives pictures to the mirrors; without any, none is made."""
        for mirror in self._mirrors:
            mirror.show(self.num_steps, make)

    def add(self, step: int, logged: StepLog) -> None:
        """Takes in the step that led to ``step``; nothing waits for the device."""
        bad = torch.where(torch.isfinite(logged.means["loss"]), math.inf, float(step))
        self._first_bad = torch.minimum(self._first_bad, bad)
        if self._steps:
            check_same_names(logged.means, self._sums)
        for name, value in logged.means.items():
            # In double precision a few losses add up without rounding, so that a stop within an interval, after which
            # the ranks share one sum, changes no digit.
            self._sums[name] = self._sums.get(name, 0) + value.double()
        for name, value in logged.counts.items():
            self._counts[name] = self._counts.get(name, 0) + value
        self._steps += 1

    def first_bad_step(self) -> float:
        """The first step whose loss was not finite on any rank, or infinity; collective, and waits for the device."""
        return -distributed.all_reduce(-self._first_bad, "max").item()

    def write(self, step: int, lr: float, watched: dict[str, Any]) -> None:
        """Ends the interval with an entry; collective."""
        entry: dict[str, Any] = self._means() | self._take_counts()
        self._sums, self._steps = {}, 0
        entry["lr"] = lr
        entry |= self.progress.measure(step)
        self.last_entry = dict(entry)
        if distributed.is_main():
            self.progress.line(step, entry)
            self.record("train", step, entry | watched)

    def record(self, split: str, step: int, entry: dict[str, Any]) -> None:
        """Writes an entry on rank 0: the file first, then its mirror."""
        if self._file is not None:
            self._folder.check_owned()
            self._file.append({"step": step, "split": split, **entry})
            for mirror in self._mirrors:
                mirror.log({"step": step, **entry}, split)

    def state_dict(self) -> dict[str, Any]:
        """For the resume state: the unfinished interval as its mean over the ranks; collective."""
        ranks = distributed.world_size()
        return {
            "sums": {name: distributed.all_reduce(value.clone()) / ranks for name, value in self._shared_sums()},
            "steps": self._steps,
            "counts": {name: int(distributed.all_reduce(value.clone())) for name, value in self._shared_counts()},
            "totals": self.totals,
            "last_entry": self.last_entry,
            "file": self._file.sync() if self._file is not None else None,
            "damaged_at": self.damaged_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums, self._steps = state["sums"], state["steps"]
        self.totals, self.last_entry = state["totals"], state["last_entry"]
        self._saved_file, self.damaged_at = state.get("file"), state.get("damaged_at", [])
        if distributed.is_main():  # they are sums over the ranks already
            self._counts = {name: torch.tensor(value, device=self.device) for name, value in state["counts"].items()}

    def _means(self) -> dict[str, float]:
        names, sums = zip(*self._shared_sums(), strict=True)
        stacked = torch.stack([value.double() for value in sums])
        means = distributed.all_reduce(stacked) / (self._steps * distributed.world_size())
        return dict(zip(names, means.tolist(), strict=True))

    def _shared_sums(self) -> list[tuple[str, Tensor]]:
        """By name, in an order that all ranks share; collective."""
        for names in distributed.all_gather_objects(sorted(self._sums)):
            check_same_names(self._sums, names)
        return sorted(self._sums.items())

    def _shared_counts(self) -> list[tuple[str, Tensor]]:
        """As ``_shared_sums``; a count that another rank has is 0 here."""
        everywhere = distributed.all_gather_objects(sorted(self._counts))
        zero = torch.zeros((), dtype=torch.int64, device=self.device)
        return [(name, self._counts.get(name, zero)) for name in sorted(set().union(*everywhere))]

    def _take_counts(self) -> dict[str, int]:
        """The counts of the interval over all ranks, added to the totals."""
        shared = self._shared_counts()
        if not shared:
            return {}
        sums = distributed.all_reduce(torch.stack([value for _, value in shared])).tolist()
        counts = {name: value for (name, _), value in zip(shared, sums, strict=True)}
        self._counts = {}
        for name, value in counts.items():
            self.totals[name] = self.totals.get(name, 0) + value
        return counts
