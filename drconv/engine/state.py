"""Everything a training run carries from step to step, and nothing else."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from drconv import distributed
from drconv.config import Config
from drconv.engine.freeze import freeze
from drconv.engine.optimizer import build_optimizer
from drconv.engine.sharding import Sharding
from drconv.interfaces import Task

EMA_PREFIX = "module."  # of the averaged model's names


class TrainState:
    """Task, optimiser, averaged weights, gradient scaler and step.

    Order of wrapping: device, channels-last, synchronised BN, EMA copy, compile, DDP. States are saved from the
    unwrapped task, so that they load whatever the number of ranks and whether compiled or not.
    """

    def __init__(self, config: Config, task: Task[Any], device: torch.device) -> None:
        place(task, config, device)
        if config.runtime.sync_bn and distributed.world_size() > 1:
            task = _synchronise_batchnorm(task)
        freeze(task, config.recipe.freeze)
        self.step = 0
        self.elapsed_s = 0.0
        self.task = task
        self.optimizer = build_optimizer(task, config.recipe.optimizer)
        self.sharding = Sharding(task, self.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.runtime.precision == "fp16")
        self.ema: AveragedModel | None = None
        if config.recipe.ema_decay is not None:
            self.ema = AveragedModel(task, multi_avg_fn=_average(config.recipe.ema_decay), use_buffers=True)
        if config.runtime.compile:
            task.compile()
        self.wrapped: nn.Module = task
        if distributed.world_size() > 1:
            own = [spelled for name in self.sharding.names for spelled in (name, f".{name}")]  # DDP uses both forms
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(task, own)
            self.wrapped = DistributedDataParallel(task, device_ids=[device] if device.type == "cuda" else None)

    def broadcast_buffers(self) -> None:
        """Before each evaluation and checkpoint: one set of BN statistics for all ranks."""
        distributed.broadcast_buffers(self.task)
        if self.ema is not None:
            distributed.broadcast_buffers(self.ema)

    def state_dict(self) -> dict[str, Any]:
        """What a resume state holds, the same on any number of ranks; collective."""
        sharding = self.sharding
        averaged = None if self.ema is None else sharding.whole_weights(self.ema.state_dict(), EMA_PREFIX)
        return {
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "task": sharding.whole_weights(self.task.state_dict()),
            "optimizer": sharding.whole_moments(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "ema": averaged,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.elapsed_s = state["elapsed_s"]
        self.task.load_state_dict(self.sharding.own_weights(state["task"]))
        self.optimizer.load_state_dict(self.sharding.own_moments(state["optimizer"]))
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(self.sharding.own_weights(state["ema"], EMA_PREFIX))

    def evaluated(self) -> dict[str, Task[Any]]:
        """The tasks that evaluation looks at, by the name of their weights."""
        tasks = {"last": self.task}
        if self.ema is not None:
            tasks["ema"] = cast(Task[Any], self.ema.module)
        return tasks


def _synchronise_batchnorm(task: Task[Any]) -> Task[Any]:
    """timm's converter: torch's own would drop the activations inside timm's batch norms."""
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(task)


def place(task: nn.Module, config: Config, device: torch.device) -> None:
    """Device and memory format, the same in training and evaluation: another format rounds differently."""
    task.to(device)
    if config.runtime.channels_last:
        task.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _average(decay: float) -> Callable[..., None]:
    """The exponential moving average; whole numbers are ids and counters, of which there is no mean, and are copied."""
    of_fractions = get_ema_multi_avg_fn(decay)

    def update(averaged: list[Tensor], current: list[Tensor], number: Tensor) -> None:
        if averaged[0].is_floating_point():
            of_fractions(averaged, current, number)
        else:
            torch._foreach_copy_(averaged, current)

    return update
