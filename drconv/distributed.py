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


def gather_objects(value: Result) -> list[Result]:
    """The values of all ranks, in the order of the ranks, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, gathered, dst=0)
    return gathered or []


def all_gather_objects(value: Result) -> list[Result]:
    """The values of all ranks on every rank."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def gather_tensors(values: Tensor) -> list[Tensor]:
    """Tensors (N, ...) of all ranks, N may differ from rank to rank, on rank 0; an empty list on the others."""
    if world_size() == 1:
        return [values]
    gathered = all_gather_tensors(values)
    return gathered if is_main() else []


def all_gather_tensors(values: Tensor) -> list[Tensor]:
    """Tensors (N, ...) of all ranks on every rank; N may differ from rank to rank, the other dimensions must not."""
    if world_size() == 1:
        return [values]
    length = torch.tensor([len(values)], device=values.device)
    lengths = [torch.zeros_like(length) for _ in range(world_size())]
    dist.all_gather(lengths, length)
    longest = max(int(size) for size in lengths)
    padded = values.new_zeros(longest, *values.shape[1:])
    padded[: len(values)] = values
    gathered = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(gathered, padded)
    return [part[: int(size)] for part, size in zip(gathered, lengths, strict=True)]


def all_gather_rows(own: Tensor) -> Tensor:
    """The whole tensor of which every rank holds its own rows."""
    return torch.cat(all_gather_tensors(own))


def own_rows(whole: Tensor) -> Tensor:
    """This rank's rows: the first ranks have one more where they do not come out even."""
    return whole.tensor_split(world_size())[rank()]
