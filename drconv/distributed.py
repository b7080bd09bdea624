"""Collectives over the ranks of a run; with one rank they cost nothing."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from drconv.world import STORE

Result = TypeVar("Result")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    return rank() == 0


def init_process_group(device: torch.device, timeout_s: int) -> None:
    """Joins the ranks named by the environment (RANK, WORLD_SIZE); nothing to do for one rank.

    Ranks that ``launch`` started meet through a private file, those of torchrun through MASTER_ADDR.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if ranks == 1:
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    path = os.environ.get(STORE)
    meeting: dict[str, Any] = {}
    if path is not None:
        meeting = {"store": dist.FileStore(path, ranks), "rank": int(os.environ["RANK"]), "world_size": ranks}
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s), **meeting)


def destroy_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def all_reduce(values: Tensor, operation: str = "sum") -> Tensor:
    """Sum (or max) over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[operation])
    return values


def broadcast_buffers(module: nn.Module) -> None:
    """Gives every rank the buffers of rank 0: BN statistics drift apart by the last step, even under DDP."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def on_main(function: Callable[[], Result]) -> Result:
    """Calls a function on rank 0 alone and gives all ranks its result; its exception is raised on all of them."""
    if world_size() == 1:
        return function()
    outcome: list[object] = [None, None]
    if is_main():
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]
