"""What a run would cost here, from three real steps and one evaluation batch; nothing is saved."""

import math
import time
from datetime import timedelta

import torch
from torch import nn

from drconv import distributed
from drconv.config import Config
from drconv.config_check import steps_of_run
from drconv.engine.data import Data
from drconv.engine.evaluation import evaluate
from drconv.engine.progress import memory_gib
from drconv.engine.state import TrainState
from drconv.engine.step import train_step
from drconv.nn.cost import count_cost

NUM_STEPS = 3


def dry_run(config: Config, task: nn.Module, data: Data, device: torch.device) -> float:
    """Prints cost, speed, memory and projected time; returns the projected seconds."""
    state = TrainState(config, task, device)
    num_steps = steps_of_run(config, len(data.train))
    compute_s = min(_timed_steps(config, state, data, num_steps, device)[1:])
    loading_s = _timed_loading(config, data)
    begin = time.perf_counter()
    evaluate(state.task, data.val_batches, config, device, limit=1)
    batch_s = time.perf_counter() - begin
    per_pass = math.ceil(len(data.val) / (config.recipe.eval_batch_size * distributed.world_size()))
    passes = 1 + ((num_steps - 1) // config.logging.eval_every if config.logging.eval_every else 0)
    step_s = max(compute_s, loading_s)
    total_s = num_steps * step_s + passes * per_pass * batch_s
    if distributed.is_main():
        size = config.data.image_size
        cost = count_cost(state.task.network, (3, size, size))  # type: ignore[arg-type]
        print(f"network: {cost.parameters / 1e6:.2f}M parameters, {cost.multiply_adds / 1e6:.1f}M multiply-adds")
        print(
            f"dry run: {config.recipe.batch_size / step_s:.0f} images/s in training; a step computes for "
            f"{compute_s:.3f} s and its data take {loading_s:.3f} s to load; {memory_gib(device):.2f} GiB; "
            f"{batch_s:.2f} s an evaluation batch"
        )
        print(
            f"projected for {num_steps} steps and {passes} evaluations on {distributed.world_size()} x {device.type}: "
            f"{timedelta(seconds=round(total_s))}"
        )
    return total_s


def _timed_steps(config: Config, state: TrainState, data: Data, num_steps: int, device: torch.device) -> list[float]:
    """Seconds of each step on batches that are already there, the first with its warm-up."""
    batches = list(data.train_batches(0, NUM_STEPS))
    accumulate = config.runtime.accumulate
    seconds = []
    for step in range(NUM_STEPS):
        begin = time.perf_counter()
        parts = iter(batches[step * accumulate : (step + 1) * accumulate])
        loss = train_step(state, parts, config, num_steps, device)["loss"]
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
