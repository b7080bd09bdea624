"""The training loop: steps, evaluations, resume states, stops; it knows tasks and data by their interfaces alone."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from drconv import distributed
from drconv.config import Config
from drconv.config_check import length_problems, steps_of_run
from drconv.engine.batchnorm import reestimate_batchnorm
from drconv.engine.checkpoint import load_resume, save_resume
from drconv.engine.contract import check_watch, check_watched
from drconv.engine.data import Data
from drconv.engine.evaluation import evaluate, full_names
from drconv.engine.run_folder import RunFolder
from drconv.engine.signals import StopSignals
from drconv.engine.state import TrainState
from drconv.engine.step import StepLog, base_lr, train_step
from drconv.engine.training_log import TrainingLog
from drconv.errors import ConfigError, NonFiniteLossError, RunFolderError, of_lost_loader, stopped_by
from drconv.identity import select_binding
from drconv.interfaces import Batch, Task
from drconv.results import provenance
from drconv.run_status import note_start
from drconv.tasks.registry import headline_name

SETTLED_STEPS = 100  # after which running averages of momentum 0.1 have forgotten their start
FIRST_LOSS_TOLERANCE = 0.2  # share of the expected first loss within which the first one should lie


class Trainer:
    """Trains a task on its data, going on from the run folder's resume state if there is one."""

    def __init__(self, config: Config, task: Task[Any], data: Data, folder: RunFolder, device: torch.device) -> None:
        self.config = config
        self.data = data
        self.folder = folder
        self.num_steps = steps_of_run(config, len(data.train))
        for problem in length_problems(config, self.num_steps):
            raise ConfigError(problem)
        self.device = device
        self.state = TrainState(config, task, device)
        self.log = TrainingLog(config, self.num_steps, device)
        self._evaluation_due = False  # the run was stopped inside the evaluation that belongs to its last step
        self._signals = StopSignals(device)
        self.commits: list[dict[str, Any]] = []  # of the code, by the step that each began with
        self._resume()
        self._note_commit()
        evaluates_first = self._evaluation_due or self.state.step == self.num_steps
        self.log.open(folder, self.state.step, evaluates_first)
        if distributed.is_main():
            headline = headline_name(config.task, config.experiment.metric)
            note_start(folder.path, self.num_steps, config.recipe.batch_size, config.logging.every, headline)

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
        except BaseException as error:
            self.log.close({}, exit_code=1)
            if of_lost_loader(error) and self._signals.received is not None:
                raise stopped_by(  # loader processes that outlive SIGTERM by half a minute end by themselves
                    self._signals.received.name,
                    " while waiting for a batch; the last state saved is kept, the same command continues",
                ) from None
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

    def _step(self, batches: Iterator[Batch]) -> None:
        logging, state = self.config.logging, self.state
        is_logged = (state.step + 1) % logging.every == 0 or state.step + 1 == self.num_steps
        watch: AbstractContextManager[dict[str, Any]] = nullcontext({})
        if is_logged and logging.region_usage:
            watch = check_watch(state.task.watch(state.optimizer))
        with watch as watched:
            logged = train_step(state, self._timed(batches), self.config, self.num_steps, self.device)
        self.log.add(state.step, logged)
        if state.step == 1:
            self._compare_first_loss(logged)
        if is_logged:
            self._check_finite()
            rate = base_lr(state.step - 1, self.num_steps, self.config.recipe)
            self.log.write(state.step, rate, check_watched(watched))
        elif distributed.is_main():
            self.log.progress.bar(state.step)
        if logging.eval_every and state.step % logging.eval_every == 0 and state.step < self.num_steps:
            self._evaluate_between()
        if state.step % logging.checkpoint_every == 0 or state.step == self.num_steps:
            self.save()

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for _ in range(self.config.runtime.accumulate):
            begin = time.perf_counter()
            batch = next(batches)
            self.log.progress.waited(time.perf_counter() - begin)
            yield batch

    def _compare_first_loss(self, logged: StepLog) -> None:
        """A wrong label, scale or margin shows in the first loss, hours before it shows in a metric."""
        expected = self.state.task.expected_first_loss()
        found = float(logged.means["loss"]) if expected is not None else 0.0
        if expected is not None and distributed.is_main() and abs(found - expected) > FIRST_LOSS_TOLERANCE * expected:
            self.log.progress.say(f"warning: the first loss is {found:.3f}, about {expected:.3f} was expected")

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Evaluates the current weights, and the averaged ones where there are any; recorded once all are done."""
        self.state.broadcast_buffers()
        metrics = {weights: self._evaluate_sets(task) for weights, task in self.state.evaluated().items()}
        for weights, sets in metrics.items():
            for name, values in sets.items():
                if distributed.is_main():
                    text = "  ".join(f"{key} {value:.4g}" for key, value in values.items())
                    self.log.progress.say(f"step {self.state.step}/{self.num_steps}  {name} ({weights})  {text}")
                self.log.record(name if weights == "last" else f"{name}_{weights}", self.state.step, values)
        self.log.progress.measure(self.state.step)
        return {weights: full_names(sets) for weights, sets in metrics.items()}

    def _evaluate_sets(self, task: Task[Any]) -> dict[str, dict[str, float]]:
        metrics = {}
        for name, evaluation in self.data.evaluations.items():
            own = len(evaluation.dataset) // distributed.world_size()  # of every rank at least
            batches = self._until_stopped(evaluation.batches, math.ceil(own / self.config.recipe.eval_batch_size))
            metrics[name] = evaluate(task, name, evaluation.dataset, batches, self.config, self.device)
        return metrics

    def _evaluate_between(self) -> None:
        self._evaluation_due = True
        self.evaluate()
        self._evaluation_due = False

    def _until_stopped(self, batches: Iterable[Batch], shared: int) -> Iterator[Batch]:
        """Passes batches on, and looks for a signal after each of the first ``shared``, which every rank has."""
        for number, batch in enumerate(batches):
            yield batch
            if distributed.is_main():
                self.log.progress.evaluation_bar(number + 1, shared)
            if number < shared and self._signals.should_stop():
                self._stop()

    def _reestimate_batchnorm(self) -> None:
        num_batches = self.config.recipe.bn_reestimation_steps
        if not num_batches and self.num_steps < SETTLED_STEPS and distributed.is_main() and self._has_batchnorm():
            self.log.progress.say(
                f"hint: in {self.num_steps} steps the running averages of batch norms lag behind the weights, and "
                f"evaluation uses them; recipe.bn_reestimation_steps=20 measures them again at the end"
            )
        if num_batches:
            for task in self.state.evaluated().values():
                batches = self.data.train_batches(self.num_steps, self.num_steps + num_batches)
                reestimate_batchnorm(task, self._until_stopped(batches, num_batches), self.config, self.device)

    def _has_batchnorm(self) -> bool:
        return any(isinstance(module, _BatchNorm) for module in self.state.task.modules())

    def save(self) -> None:
        """Replaces the resume state; a failure on rank 0 is raised on all ranks."""
        self._check_finite()
        self._check_parameters()
        self.state.broadcast_buffers()
        content = {
            "state": self.state.state_dict(),
            "log": self.log.state_dict(),
            "evaluation_due": self._evaluation_due,
        }
        distributed.on_main(lambda: self._write_state(content))

    def _write_state(self, content: dict[str, Any]) -> None:
        own = {"data": self.data.fingerprints, "config": asdict(self.config), "commits": self.commits}
        self.folder.check_owned()
        save_resume(self.folder.resume, {**content, **own})

    def _note_commit(self) -> None:
        """Another commit than that of the last start is kept too, so that a record names all that made it."""
        if not distributed.is_main():
            return
        here = provenance.code()
        if not self.commits or {**self.commits[-1], **here} != self.commits[-1]:
            self.commits.append({"step": self.state.step, **here})

    def _resume(self) -> None:
        fingerprints = distributed.on_main(lambda: self.data.fingerprints)  # before steps are spent on data without
        if not self.folder.has_state:
            return
        saved, warning = load_resume(self.folder.resume, self.device)
        if warning and distributed.is_main():
            print(warning, flush=True)
        if "config" in saved:
            self.folder.compare_keys(select_binding(saved["config"]), self.config)
        distributed.on_main(lambda: self.folder.restore_config(self.config))
        if saved["data"] != fingerprints:
            if self.config.overwrite:
                distributed.on_main(lambda: self.folder.renew(self.config))
                return
            raise RunFolderError(
                f"the data differ from those the run in {self.folder.path} began with; check data.root, or "
                f"choose another folder with run=, or overwrite=true to set the old one aside"
            )
        try:
            if saved["state"]["step"] > self.num_steps:
                raise ValueError(f"step {saved['state']['step']} of a run of {self.num_steps}")
            self.state.load_state_dict(saved["state"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:120]
            raise RunFolderError(
                f"{self.folder.resume} does not fit this network and optimiser ({reason}); remove it, or "
                f"choose another folder with run="
            ) from None
        self.log.load_state_dict(saved["log"])
        self.commits = saved.get("commits", [])
        self._evaluation_due = saved.get("evaluation_due", False)
        if distributed.is_main():
            print(f"continues at step {self.state.step} of {self.num_steps}", flush=True)

    def _stop(self) -> NoReturn:
        if self.state.step < self.num_steps:  # the state after the last step is saved before the final evaluation
            self.save()
        reason = self._signals.received.name if self._signals.received else "a signal"
        raise stopped_by(reason, f" after step {self.state.step}; the same command continues")

    def _check_finite(self) -> None:
        """Looked at before anything is logged or saved, so that no step waits for it."""
        first = self.log.first_bad_step()
        if first != math.inf:
            self._stop_not_finite(f"the loss is not finite at step {first:.0f}")

    def _check_parameters(self) -> None:
        """Before a state replaces the last good one: the loss tells of the last update only a step later."""
        finite = torch.stack([p.isfinite().all() for p in self.state.task.parameters()]).all()
        if distributed.all_reduce((~finite).float(), "max").item():
            self._stop_not_finite(f"a parameter is not finite after step {self.state.step}")

    def _stop_not_finite(self, finding: str) -> NoReturn:
        kept = f"the last good state is kept in {self.folder.resume}" if self.folder.has_state else "no state was saved"
        raise NonFiniteLossError(
            f"{finding}; {kept}; lower recipe.optimizer.lr, set recipe.clip_norm or lengthen "
            f"recipe.schedule.warmup_steps"
        )
