"""What a run would cost here, from a few real steps and evaluation batches; nothing is saved."""

import math
import time
from datetime import timedelta
from itertools import islice
from typing import Any

import torch

from drconv import distributed
from drconv.config import Config
from drconv.config_check import steps_of_run
from drconv.engine.data import Data, Evaluation
from drconv.engine.evaluation import evaluate
from drconv.engine.progress import memory_gib
from drconv.engine.state import TrainState
from drconv.engine.step import train_step
from drconv.interfaces import Task
from drconv.outcomes import Projection

NUM_STEPS = 3


def dry_run(config: Config, task: Task[Any], data: Data, device: torch.device) -> Projection:
    """Prints speed, memory and projected time; returns the projected seconds."""
    state = TrainState(config, task, device)
    num_steps = steps_of_run(config, len(data.train))
    compute_s = min(_timed_steps(config, state, data, num_steps, device)[1:])
    loading_s = _timed_loading(config, data)
    pass_s, batch_s = _timed_evaluations(config, state, data, device)
    passes = 1 + ((num_steps - 1) // config.logging.eval_every if config.logging.eval_every else 0)
    step_s = max(compute_s, loading_s)
    total_s = projected_seconds(config, num_steps, step_s, passes * pass_s)
    projection = Projection(total_s, distributed.world_size(), memory_gib(device))
    if distributed.is_main():
        print(
            f"dry run: {config.recipe.batch_size / step_s:.0f} images/s in training; a step computes for "
            f"{compute_s:.3f} s and its data take {loading_s:.3f} s to load; {memory_gib(device):.2f} GiB; "
            f"{batch_s:.2f} s an evaluation batch"
        )
        print(
            f"projected for {num_steps} steps and {passes} evaluations on {distributed.world_size()} x {device.type}: "
            f"{timedelta(seconds=round(total_s))}, {projection.device_hours:.2f} device-hours"
        )
    return projection


def projected_seconds(config: Config, num_steps: int, step_s: float, evaluation_s: float) -> float:
    """Training, evaluation and batch-norm re-estimation (a step of it counts as one of training, its upper bound).

    Where averaged weights are kept, they are evaluated and re-estimated too.
    """
    networks = 1 if config.recipe.ema_decay is None else 2
    steps = num_steps + networks * config.recipe.bn_reestimation_steps
    return steps * step_s + networks * evaluation_s


def _timed_steps(config: Config, state: TrainState, data: Data, num_steps: int, device: torch.device) -> list[float]:
    """Seconds of each step on batches that are already there, the first with its warm-up."""
    batches = list(data.train_batches(0, NUM_STEPS))
    accumulate = config.runtime.accumulate
    seconds = []
    for step in range(NUM_STEPS):
        begin = time.perf_counter()
        parts = iter(batches[step * accumulate : (step + 1) * accumulate])
        loss = train_step(state, parts, config, num_steps, device).means["loss"]
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - begin)
    return seconds


def _timed_loading(config: Config, data: Data) -> float:
    """Seconds in which the loader processes make the data of a step, when they do nothing but that."""
    ahead = 2 * config.runtime.workers  # micro-batches that the processes prepare in advance
    measured = max(2, config.runtime.workers)
    num_steps = math.ceil((ahead + measured) / config.runtime.accumulate)
    batches = data.train_batches(0, num_steps)
    for _ in range(ahead):
        next(batches)
    begin = time.perf_counter()
    for _ in range(measured):
        next(batches)
    return (time.perf_counter() - begin) / measured * config.runtime.accumulate


def _timed_evaluations(config: Config, state: TrainState, data: Data, device: torch.device) -> tuple[float, float]:
    """Seconds of a pass over all evaluation sets, and those of its slowest batch."""
    seconds = [_timed_evaluation(config, state, evaluation, device) for evaluation in data.evaluations.values()]
    batches = [
        math.ceil(len(evaluation.dataset) / (config.recipe.eval_batch_size * distributed.world_size()))
        for evaluation in data.evaluations.values()
    ]
    return sum(number * each for number, each in zip(batches, seconds, strict=True)), max(seconds)


def _timed_evaluation(config: Config, state: TrainState, evaluation: Evaluation, device: torch.device) -> float:
    """Seconds of an evaluation batch once the loader processes run: computed while they load the next ones.

    The first batch, which waits for the processes to start, and those that they prepared meanwhile are left out.
    """
    batches = iter(evaluation.batches)
    first = list(islice(batches, 1))  # none, where there are more ranks than samples
    evaluate(state.task, evaluation.name, evaluation.dataset, first, config, device)
    own = len(evaluation.dataset) // distributed.world_size()  # of every rank at least
    left = max(0, math.ceil(own / config.recipe.eval_batch_size) - 1)
    measured = min(max(2, config.runtime.workers), left)
    for _ in islice(batches, max(0, min(2 * config.runtime.workers, left - measured))):
        pass
    begin = time.perf_counter()
    timed = islice(batches, measured) if measured else first
    evaluate(state.task, evaluation.name, evaluation.dataset, timed, config, device)
    return (time.perf_counter() - begin) / max(1, measured)
