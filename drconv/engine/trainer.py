"""The training loop: steps, log, evaluation, resume states; it knows no task and no data set."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from drconv import distributed
from drconv.config import Config
from drconv.config_check import steps_of_run
from drconv.engine.batchnorm import reestimate_batchnorm
from drconv.engine.checkpoint import load_resume, save_resume
from drconv.engine.data import Data
from drconv.engine.evaluation import evaluate
from drconv.engine.metrics_log import MetricsLog
from drconv.engine.progress import Progress
from drconv.engine.run_folder import RunFolder
from drconv.engine.signals import StopSignals
from drconv.engine.state import TrainState
from drconv.engine.step import train_step
from drconv.engine.wandb_mirror import WandbMirror
from drconv.errors import NonFiniteLossError, RunFolderError, StoppedError
from drconv.nn.diagnostics import gradient_norms, region_statistics


class Trainer:
    """Trains a task on a data set, going on from the run folder's resume state if there is one."""

    def __init__(self, config: Config, task: nn.Module, data: Data, folder: RunFolder, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.folder = folder
        self.num_steps = num_steps = steps_of_run(config, len(data.train))
        self.device = device
        self.state = TrainState(config, task, device)
        self._interval: dict[str, Tensor] = {}  # sums since the last log line, on the device
        self._interval_steps = 0
        self.last_entry: dict[str, Any] = {}  # the last training log entry
        self.skipped = 0  # broken pictures of all steps and ranks so far
        self._evaluation_due = False  # the run was stopped inside the evaluation that belongs to its last step
        self._signals = StopSignals(device)
        self._resume()
        self._first_bad = torch.full((), math.inf, device=device)  # first step whose loss was not finite
        self.progress = Progress(num_steps, self.state.step, config.recipe.batch_size, device)
        self._log: MetricsLog | None = None
        self._wandb: WandbMirror | None = None
        if distributed.is_main():
            evaluates_first = self._evaluation_due or self.state.step == num_steps
            self._log = MetricsLog(folder.metrics, self.state.step, evaluates_first)
            self._wandb = WandbMirror(config, folder.path)

    def fit(self) -> dict[str, dict[str, float]]:
        """Runs the remaining steps and the final evaluation; ends the W&B run if that fails.

        Returns:
            Metrics of the final weights: ``last``, and ``ema`` where averaged weights are kept.

        Raises:
            NonFiniteLossError: the loss is infinite or not a number.
            StoppedError: SIGTERM or Ctrl-C; the state is saved.
        """
        try:
            with self._signals:
                self._run_steps()
                self._reestimate_batchnorm()
                return self.evaluate()
        except BaseException:
            self.close({}, exit_code=1)
            raise

    def _run_steps(self) -> None:
        batches = self.data.train_batches(self.state.step, self.num_steps)
        started = time.perf_counter() - self.state.elapsed_s
        if self._evaluation_due:
            self._evaluate_between()
        self.state.task.train()
        while self.state.step < self.num_steps:
            self._step(batches)
            self.state.elapsed_s = time.perf_counter() - started
            if self._signals.should_stop():
                self._stop()

    def close(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        """Ends the W&B run."""
        if self._wandb is not None:
            self._wandb.finish(summary, exit_code)

    def _resume(self) -> None:
        if not self.folder.has_state:
            return
        saved, warning = load_resume(self.folder.resume, self.device)
        if warning and distributed.is_main():
            print(warning, flush=True)
        if saved["data"] != distributed.on_main(lambda: self.data.fingerprints):
            if self.config.overwrite:
                distributed.on_main(lambda: self.folder.renew(self.config))
                return
            raise RunFolderError(
                f"the data differ from those the run in {self.folder.path} began with; check data.root, or "
                f"choose another folder with run=, or overwrite=true to set the old one aside"
            )
        try:
            self.state.load_state_dict(saved["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise RunFolderError(
                f"{self.folder.resume} does not fit this network and optimiser ({reason}); remove it, or "
                f"choose another folder with run="
            ) from None
        self._interval, self._interval_steps = saved["interval"], saved["interval_steps"]
        self.last_entry, self._evaluation_due = saved["last_entry"], saved.get("evaluation_due", False)
        self.skipped = saved.get("skipped", 0)
        if distributed.is_main():
            print(f"continues at step {self.state.step} of {self.num_steps}", flush=True)

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        logging, state = self.config.logging, self.state
        is_logged = (state.step + 1) % logging.every == 0 or state.step + 1 == self.num_steps
        timed = self._timed(batches)
        watches = is_logged and logging.region_usage
        watch: AbstractContextManager[dict[str, Any]] = self._watch() if watches else nullcontext({})
        with watch as watched:
            logged = train_step(state, timed, self.config, self.num_steps, self.device)
        self._accumulate(logged)
        if is_logged:
            self._write_log(watched)
        elif distributed.is_main():
            self.progress.bar(state.step)
        if logging.eval_every and state.step % logging.eval_every == 0 and state.step < self.num_steps:
            self._evaluate_between()
        if state.step % logging.checkpoint_every == 0 or state.step == self.num_steps:
            self.save()

    @contextmanager
    def _watch(self) -> Iterator[dict[str, Any]]:
        """What the guides of a DRConv network do in a step, known when the context ends."""
        watched: dict[str, Any] = {}
        task, optimizer = self.state.task, self.state.optimizer
        with region_statistics(task) as regions, gradient_norms(task, optimizer) as gradients:
            yield watched
        watched |= {name: value for name, value in (("regions", regions), ("gradients", gradients)) if value}

    def _timed(self, batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for _ in range(self.config.runtime.accumulate):
            begin = time.perf_counter()
            batch = next(batches)
            self.progress.waited(time.perf_counter() - begin)
            yield batch

    def _accumulate(self, logged: dict[str, Tensor]) -> None:
        bad = torch.where(torch.isfinite(logged["loss"]), math.inf, float(self.state.step))
        self._first_bad = torch.minimum(self._first_bad, bad)
        for name, value in logged.items():
            self._interval[name] = self._interval.get(name, 0) + value
        self._interval_steps += 1

    def _check_finite(self) -> None:
        """Looked at before anything is logged or saved, so that no step waits for it."""
        first = -distributed.all_reduce(-self._first_bad, "max").item()
        if first != math.inf:
            self._stop_not_finite(f"the loss is not finite at step {first:.0f}")

    def _check_parameters(self) -> None:
        """Before a state replaces the last good one: the loss tells of the last update only a step later."""
        finite = torch.stack([p.isfinite().all() for p in self.state.task.parameters()]).all()
        if distributed.all_reduce((~finite).float(), "max").item():
            self._stop_not_finite(f"a parameter is not finite after step {self.state.step}")

    def _stop_not_finite(self, finding: str) -> NoReturn:
        kept = (
            f"the last good state is kept in {self.folder.resume}"
            if self.folder.resume.exists()
            else "no state was saved"
        )
        raise NonFiniteLossError(
            f"{finding}; {kept}; lower recipe.optimizer.lr, set recipe.clip_norm or lengthen "
            f"recipe.schedule.warmup_steps"
        )

    def _write_log(self, watched: dict[str, Any]) -> None:
        self._check_finite()
        names = sorted(self._interval)
        sums = torch.stack([self._interval[name].double() for name in names])
        parts = self._interval_steps * distributed.world_size()
        means = distributed.all_reduce(sums) / parts
        self._interval, self._interval_steps = {}, 0
        entry: dict[str, Any] = dict(zip(names, means.tolist(), strict=True))
        if "skipped" in entry:  # a count; a step's value is the mean over its micro-batches
            entry["skipped"] = round(entry["skipped"] * parts * self.config.runtime.accumulate)
            self.skipped += entry["skipped"]
        entry["lr"] = self.state.optimizer.param_groups[0]["lr"] / self.state.optimizer.param_groups[0]["lr_factor"]
        entry |= self.progress.measure(self.state.step)
        self.last_entry = dict(entry)
        if self._log is None:
            return
        self.progress.line(self.state.step, entry)
        self._record("train", entry | watched)

    def _record(self, split: str, entry: dict[str, Any]) -> None:
        """On rank 0: the file first, then its mirror."""
        if self._log is not None and self._wandb is not None:
            self._log.append({"step": self.state.step, "split": split, **entry})
            self._wandb.log({"step": self.state.step, **entry}, split)

    def _evaluate_between(self) -> None:
        self._evaluation_due = True
        self.evaluate()
        self._evaluation_due = False

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluates the current weights, and the averaged ones where there are any; recorded once all are done."""
        self.state.broadcast_buffers()
        shared = math.ceil(len(self.data.val) // distributed.world_size() / self.config.recipe.eval_batch_size)
        metrics = {
            weights: evaluate(task, self._until_stopped(self.data.val_batches, shared), self.config, self.device)
            for weights, task in self.state.evaluated().items()
        }
        for weights, values in metrics.items():
            if distributed.is_main():
                text = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
                self.progress.say(f"step {self.state.step}/{self.num_steps}  val ({weights})  {text}")
            self._record("val" if weights == "last" else f"val_{weights}", values)
        self.progress.measure(self.state.step)
        return metrics

    def _until_stopped(self, batches: Iterable[dict[str, Any]], shared: int) -> Iterator[dict[str, Any]]:
        """Passes batches on, and looks for a signal after each of the first ``shared``, which every rank has."""
        for number, batch in enumerate(batches):
            yield batch
            if number < shared and self._signals.should_stop():
                self._stop()

    def save(self) -> None:
        """Replaces the resume state; a failure on rank 0 is raised on all ranks."""
        self._check_finite()
        self._check_parameters()
        self.state.broadcast_buffers()
        ranks = distributed.world_size()
        interval = {name: distributed.all_reduce(value.clone()) / ranks for name, value in self._interval.items()}
        distributed.on_main(lambda: save_resume(self.folder.resume, self._resume_state(interval)))

    def _resume_state(self, interval: dict[str, Tensor]) -> dict[str, Any]:
        return {
            "state": self.state.state_dict(),
            "data": self.data.fingerprints,
            "interval": interval,
            "interval_steps": self._interval_steps,
            "last_entry": self.last_entry,
            "evaluation_due": self._evaluation_due,
            "skipped": self.skipped,
        }

    def _stop(self) -> NoReturn:
        if self.state.step < self.num_steps:  # the state after the last step is saved before the final evaluation
            self.save()
        reason = self._signals.received.name if self._signals.received else "a signal"
        raise StoppedError(f"stopped by {reason} after step {self.state.step}; the same command continues")

    def _reestimate_batchnorm(self) -> None:
        num_batches = self.config.recipe.bn_reestimation_steps
        if num_batches:
            for task in self.state.evaluated().values():
                batches = self.data.train_batches(self.num_steps, self.num_steps + num_batches)
                reestimate_batchnorm(task, self._until_stopped(batches, num_batches), self.config, self.device)
