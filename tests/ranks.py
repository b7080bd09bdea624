"""Work for two ranks in processes of their own; ``python -m tests.ranks FOLDER`` runs all of it once."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from drconv import distributed
from drconv.config import Config, GroupConfig
from drconv.engine.state import TrainState
from drconv.engine.step import train_step
from drconv.interfaces import Batch, Facts, Outputs, Task

CPU = torch.device("cpu")
STEPS, BATCH, ROWS = 10, 12, 7  # rows do not come out even on two ranks


class Regression(Task):
    """Mean squared error over a network, and over rows that the ranks share out."""

    train_set = evaluation_sets = new_metric = evaluate = None  # type: ignore[assignment]  # nothing here uses them

    def __init__(self, network: nn.Module, config: Config, facts: Facts) -> None:
        super().__init__(network, config, facts)
        whole = torch.linspace(-1, 1, ROWS * 3).view(ROWS, 3)
        self.rows = nn.Parameter(distributed.own_rows(whole).clone())

    def sharded_parameters(self) -> set[str]:
        return {"rows"}

    def forward(self, batch: Batch) -> Outputs:
        error = nn.functional.mse_loss(self.network(batch["x"]), batch["y"])
        # A loss of all rows, of which each rank adds its own: its gradient needs no other rank.
        rows = self.rows.square().sum()
        return Outputs({"error": error, "rows": rows}, counts={"samples": torch.tensor(len(batch["x"]))})


def make_config(accumulate: int, clip_norm: float | None = None) -> Config:
    config = Config()
    config.recipe.optimizer.lr, config.recipe.optimizer.weight_decay = 0.1, 0.01
    config.recipe.optimizer.groups = [GroupConfig(match="rows", lr=0.5, weight_decay=0.0)]
    config.recipe.clip_norm = clip_norm
    config.runtime.accumulate, config.runtime.channels_last = accumulate, False
    return config


def make_state(config: Config) -> TrainState:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))  # no batch norm: it would see half
    return TrainState(config, Regression(network, config, Facts(2, None)), CPU)


def train(
    accumulate: int, clip_norm: float | None = None, start: dict[str, Any] | None = None, stop: int = STEPS
) -> dict[str, Any]:
    """The state after so many steps; collective."""
    config = make_config(accumulate, clip_norm)
    state = make_state(config)
    if start is not None:
        state.load_state_dict(start)
    ranks, rank = distributed.world_size(), distributed.rank()
    while state.step < stop:
        generator = torch.Generator().manual_seed(state.step)
        x, y = torch.randn(BATCH, 3, generator=generator), torch.randn(BATCH, 2, generator=generator)
        pieces = list(zip(x.chunk(ranks * accumulate), y.chunk(ranks * accumulate), strict=True))
        own = pieces[rank * accumulate : (rank + 1) * accumulate]
        train_step(state, iter([{"x": a, "y": b} for a, b in own]), config, STEPS, CPU)
    return state.state_dict()


def gathered() -> dict[str, Any]:
    """What the gathers give on rank 0, of tensors of different length and of objects."""
    rank = distributed.rank()
    tensors = distributed.gather_tensors(torch.arange(rank * 3.0 + 1).view(-1, 1))
    return {"tensors": tensors, "objects": distributed.gather_objects({"rank": rank, "text": "x" * rank})}


def work(folder: Path) -> dict[str, Any]:
    """Everything that is compared with one rank; collective."""
    halfway = torch.load(folder / "halfway.pt", weights_only=True)
    return {
        "whole": train(1),
        "accumulated": train(3),
        "clipped": train(1, clip_norm=0.05),
        "halfway": train(1, stop=STEPS // 2),
        "resumed": train(1, start=halfway),
        "gathered": gathered(),
    }


def main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    result = work(Path(folder))
    if rank == 0:
        torch.save(result, Path(folder, "result.pt"))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(main, (sys.argv[1],), nprocs=2)
