"""One optimiser step: micro-batches, precision, clipping, averaging."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from drconv import distributed
from drconv.config import Config, RecipeConfig
from drconv.engine.contract import as_count, as_mean, check_outputs, check_same_names
from drconv.engine.optimizer import set_lr
from drconv.engine.schedule import lr_factor
from drconv.engine.state import TrainState
from drconv.errors import TaskError
from drconv.interfaces import Batch, Outputs
from drconv.nn.diagnostics import set_progress

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """The precision of forward passes, in training and evaluation alike."""
    dtype = AUTOCAST.get(config.runtime.precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def seed_step(seed: int, step: int) -> None:
    """Random numbers drawn in a step (dropout) depend on seed, step and rank alone: a resumed run draws the same."""
    torch.manual_seed(((seed * 1_000_003 + step) * 4_099 + distributed.rank()) % 2**63)


@dataclass
class StepLog:
    """What a step gives to the log, on the device: means over this rank's micro-batches, and sums of counts."""

    means: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, outputs: Outputs, num_parts: int) -> None:
        """Adds one of the micro-batches of a step."""
        loss = outputs.loss.detach()
        parts = outputs.losses if len(outputs.losses) > 1 else {}
        values = {"loss": loss} | parts | outputs.scalars
        if self.means:
            check_same_names(values, self.means)
        for name, value in values.items():
            self.means[name] = self.means.get(name, 0) + as_mean(value, loss.device) / num_parts
        for name, count in outputs.counts.items():
            self.counts[name] = self.counts.get(name, 0) + as_count(count, loss.device)


def base_lr(step: int, num_steps: int, recipe: RecipeConfig) -> float:
    """The learning rate of a step; groups have theirs by a factor."""
    return recipe.optimizer.lr * lr_factor(step, num_steps, recipe.schedule)


def train_step(
    state: TrainState, batches: Iterator[Batch], config: Config, num_steps: int, device: torch.device
) -> StepLog:
    """Takes ``runtime.accumulate`` micro-batches and updates the parameters once."""
    set_progress(state.task, state.step / num_steps)
    accumulate = config.runtime.accumulate
    logged = StepLog()
    for part in range(accumulate):
        batch = next(batches)
        if part == 0:  # after the first batch is there: a loader that starts draws from the same generator
            seed_step(config.seed, state.step)
        with _synchronised(state, last=part == accumulate - 1):
            with autocast(config, device):
                outputs = check_outputs(state.wrapped(batch))
            state.scaler.scale(outputs.loss / accumulate).backward()
        logged.add(outputs, accumulate)
    _check_gradients(state)
    set_lr(state.optimizer, base_lr(state.step, num_steps, config.recipe))
    if config.recipe.clip_norm is not None or state.sharding.names:
        state.scaler.unscale_(state.optimizer)
        state.sharding.share_overflow(state.scaler, state.optimizer)
    if config.recipe.clip_norm is not None:
        logged.means["grad_norm"] = state.sharding.clip_gradients(state.task, config.recipe.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)
    if state.ema is not None:
        state.ema.update_parameters(state.task)
    state.step += 1
    return logged


def _check_gradients(state: TrainState) -> None:
    """Ranks exchange gradients in groups: a parameter without one leaves the others of its group as they are.

    Raises:
        TaskError: a parameter has no part in the loss.
    """
    if not isinstance(state.wrapped, DistributedDataParallel):
        return
    if unused := [name for name, p in state.task.named_parameters() if p.requires_grad and p.grad is None]:
        raise TaskError(
            f"{unused[0]} and {len(unused) - 1} other parameters have no part in the loss, and several ranks cannot "
            f"average gradients then; freeze them (requires_grad_(False)) or use runtime.devices=1"
        )


def _synchronised(state: TrainState, last: bool) -> AbstractContextManager:
    """Gradients travel between the ranks once a step, with the last micro-batch."""
    if isinstance(state.wrapped, DistributedDataParallel) and not last:
        return state.wrapped.no_sync()
    return nullcontext()
