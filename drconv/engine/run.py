"""One run from its opening to its record: device, ranks, folder, first lines, result."""

import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from drconv import distributed
from drconv.cli import as_yaml
from drconv.config import Config
from drconv.config_check import steps_of_run
from drconv.engine.checkpoint import save_weights
from drconv.engine.data import Data
from drconv.engine.launch import threads_per_rank
from drconv.engine.run_folder import RunFolder
from drconv.engine.trainer import Trainer
from drconv.errors import ConfigError
from drconv.nn.cost import count_cost
from drconv.results.make_record import circumstances, run_record, write_json

KERNEL = "DRCONV_KERNEL"


class Run:
    """Context of one rank. Entering joins the ranks and takes the folder; leaving gives both back."""

    def __init__(self, config: Config) -> None:
        assert config.run is not None  # filled by drconv.cli
        self.config = config
        self.folder = RunFolder(Path(config.run))
        self.device = torch.device("cpu")
        self._kernel_before = os.environ.get(KERNEL)
        self.data: Data | None = None
        self.finished: float | None = None  # the headline metric of a run that is already complete

    def __enter__(self) -> Self:
        self.device = select_device(self.config)
        distributed.init_process_group(self.device, self.config.runtime.timeout)
        try:
            apply_runtime(self.config)
            if not self.config.runtime.dry_run:
                self._open_folder()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.environ.pop(KERNEL, None)  # a sweep runs its jobs in one process
        if self._kernel_before is not None:
            os.environ[KERNEL] = self._kernel_before
        if self.data is not None:
            self.data.close()
        self.folder.close()
        distributed.destroy_process_group()

    def _open_folder(self) -> None:
        result = distributed.on_main(lambda: self.folder.open(self.config))
        if result is None:
            return
        name, value = headline(result["metrics"])
        self.finished = value
        if distributed.is_main():
            print(f"{self.folder.path} holds this run, finished: {name} {value:.4g}; overwrite=true runs it again")

    def announce(self, data: Data) -> None:
        """The first lines of a run: data, recipe, configuration."""
        self.data = data
        if not distributed.is_main():
            return
        config = self.config
        steps = steps_of_run(config, len(data.train))
        if config.recipe.note:
            print(f"note: {config.recipe.note}")
        print(f"data: {data.train.describe()}; evaluated on {data.val.describe()}")
        print(
            f"recipe: {config.recipe.name}, {steps} steps of {config.recipe.batch_size} images over "
            f"{distributed.world_size()} x {self.device.type}, lr {config.recipe.optimizer.lr} "
            f"({config.recipe.schedule.name}), {config.runtime.precision}"
        )
        if not config.runtime.dry_run:
            print(f"folder: {self.folder.path}")
        print(as_yaml(config), flush=True)

    def record(self, trainer: Trainer, metrics: dict[str, dict[str, float]]) -> float:
        """Saves the weights and the record; returns the headline metric."""
        result = distributed.on_main(lambda: self._write(trainer, metrics))
        name, value = headline(result["metrics"])
        if distributed.is_main():
            print(f"{name} {value:.4g} after {result['steps']} steps; record: {self.folder.result}", flush=True)
        trainer.close(result["metrics"])
        return value

    def _write(self, trainer: Trainer, metrics: dict[str, dict[str, float]]) -> dict[str, Any]:
        config, state = self.config, trainer.state
        metadata = {"steps": str(state.step)}
        weights = {kind: self.folder.weights(kind) for kind in metrics}
        for kind, task in state.evaluated().items():
            save_weights(weights[kind], task.network, metadata)  # type: ignore[arg-type]
        size = config.data.image_size
        cost = count_cost(state.task.network, (3, size, size))  # type: ignore[arg-type]
        details = {
            "steps": state.step,
            "wall_time_s": round(state.elapsed_s, 1),
            "train": trainer.last_entry,
            "data": trainer.data.fingerprints,
            "cost": {
                "parameters": cost.parameters,
                "multiply_adds": cost.multiply_adds,
                "paper_multiply_adds": cost.paper_multiply_adds,
            },
        }
        if config.data.broken == "skip":
            details["skipped"] = {"train": trainer.skipped, "val": metrics["last"]["skipped"]}
        conditions = circumstances(self.device, distributed.world_size())
        result = run_record(config, metrics, weights, details, conditions)
        write_json(self.folder.result, result)
        return result


def headline(metrics: dict[str, float]) -> tuple[str, float]:
    """The first metric a task computes is the one that tables show."""
    return next(iter(metrics.items()))


def select_device(config: Config) -> torch.device:
    """The device of this rank.

    Raises:
        ConfigError: CUDA is asked for and absent, or has fewer devices than ranks.
    """
    kind = config.runtime.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        if config.runtime.precision == "fp16":
            raise ConfigError("runtime.precision=fp16 needs a CUDA device and none was found; use bf16 or fp32")
        if config.runtime.sync_bn:
            raise ConfigError("runtime.sync_bn=true needs CUDA devices and none was found; switch it off")
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"runtime.device=cuda with {local_rank + 1} or more ranks, but {found} CUDA devices were found"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def apply_runtime(config: Config) -> None:
    """Process-wide settings, and the seed of the network's first weights."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(threads_per_rank(config))
    if config.runtime.kernel is not None:
        os.environ[KERNEL] = config.runtime.kernel
    torch.use_deterministic_algorithms(config.runtime.deterministic)
    torch.backends.cudnn.benchmark = not config.runtime.deterministic
    if config.runtime.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
