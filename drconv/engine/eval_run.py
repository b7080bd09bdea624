"""One evaluation of saved weights, from a run folder or from any file."""

from pathlib import Path
from typing import Any

from torch import nn

from drconv import distributed
from drconv.cli import as_yaml
from drconv.config import Config
from drconv.engine.checkpoint import load_weights
from drconv.engine.data import Data
from drconv.engine.evaluation import evaluate
from drconv.engine.run import Run, headline
from drconv.engine.state import place
from drconv.errors import ConfigError, WeightsError
from drconv.files import file_hash
from drconv.results.make_record import circumstances, evaluation_record, write_json


class EvalRun(Run):
    """Joins the ranks like a training run, but reads the run folder and takes no lock on it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.result: dict[str, Any] | None = None
        self.weights = Path(config.weights) if config.weights is not None else self._weights_of_run()

    def _open_folder(self) -> None:
        """Evaluation leaves the run's own files alone."""

    def _weights_of_run(self) -> Path:
        if not (self.folder.path / "config.yaml").exists():
            raise ConfigError("give run=<folder> of a finished run, or model=... and weights=<file>")
        if not self.folder.result.exists():
            raise ConfigError(
                f"run={self.folder.path} is not finished: no result.json; the training command continues it"
            )
        self.result = self.folder.read_result()
        return self.folder.weights(self.result["weights"])

    def evaluate(self, task: nn.Module, data: Data) -> dict[str, float]:
        """Loads the weights and evaluates them on the validation data."""
        self.data = data
        if distributed.is_main() and self.result is None:
            print(as_yaml(self.config))
        self._check_hash()
        load_weights(self.weights, task.network)  # type: ignore[arg-type]
        place(task, self.config, self.device)
        return evaluate(task, data.val_batches, self.config, self.device)

    def record(self, metrics: dict[str, float]) -> float:  # type: ignore[override]
        """Prints the metrics, writes them beside the weights and compares them with the training's own record."""
        name, value = headline(metrics)
        if distributed.is_main():
            print("  ".join(f"{key} {number!r}" for key, number in metrics.items()))
            path = self.weights.with_name(f"{self.weights.stem}.eval.json")
            conditions = circumstances(self.device, distributed.world_size())
            write_json(path, evaluation_record(self.config, self.weights, metrics, conditions))
            if self.result is not None:
                recorded = self.result["metrics"][name]
                verdict = "equal to" if recorded == value else f"different from the {recorded!r} of"
                print(f"{name} is {verdict} the training's record; written to {path}")
        return value

    def _check_hash(self) -> None:
        if self.result is None:
            return
        recorded = self.result["weights_sha256"][self.result["weights"]]
        again = "the training command with overwrite=true makes it again"
        if not self.weights.exists():
            raise WeightsError(f"{self.weights} is missing; {again}")
        if file_hash(self.weights) != recorded:
            raise WeightsError(f"{self.weights} is not the file that result.json records (sha256 differs); {again}")
