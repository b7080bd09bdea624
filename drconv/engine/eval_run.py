"""One evaluation of saved weights, from a run folder or from any file."""

import math
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drconv import distributed
from drconv.config import Config
from drconv.engine.data import Data
from drconv.engine.evaluation import evaluate, full_names
from drconv.engine.ranks import Ranks
from drconv.engine.run_folder import RunFolder
from drconv.engine.state import place
from drconv.errors import ConfigError, WeightsError
from drconv.files import file_hash
from drconv.interfaces import Facts, Task
from drconv.results.make_record import circumstances, evaluation_record, headline, write_json
from drconv.weights import load_weights, output_names


class EvalRun:
    """Context of one rank of an evaluation: joins the ranks, reads the run folder and takes no lock on it."""

    def __init__(self, config: Config) -> None:
        assert config.run is not None  # filled by drconv.compose
        self.config = config
        self.folder = RunFolder(Path(config.run))
        self._ranks = Ranks(config)
        self.result: dict[str, Any] | None = None
        self.weights = Path(config.weights) if config.weights is not None else self._weights_of_run()

    def __enter__(self) -> Self:
        self._ranks.join()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ranks.close_data()
        self._ranks.leave(failed=kind is not None)

    def load_data(self) -> Data:
        """The data sets of the run's task; their loader processes end with the evaluation."""
        return self._ranks.load_data()

    def _weights_of_run(self) -> Path:
        if not (self.folder.path / "config.yaml").exists():
            raise ConfigError("give run=<folder> of a finished run, or model=... and weights=<file>")
        if not self.folder.result.exists():
            raise ConfigError(
                f"run={self.folder.path} is not finished: no result.json; the training command continues it"
            )
        self.result = self.folder.read_result()
        return self.folder.weights(self.result["weights"])

    def facts(self, data: Data) -> Facts:
        """What the network is built from: what its weights were trained for, where their file says so.

        Evaluation on some of the classes is possible: labels are then those of the training.

        Raises:
            WeightsError: an evaluation set has outputs (classes) that the weights were not trained for.
        """
        facts = data.evaluation_facts
        trained = output_names(self.weights) if self.weights.exists() else []
        for name, evaluation in data.evaluations.items():
            own = evaluation.dataset.facts.output_names
            if not trained or not own or own == trained:
                continue
            unknown = [output for output in own if output not in trained]
            relabel = getattr(evaluation.dataset, "relabel", None)
            if unknown or relabel is None:
                example = f", {unknown[0]!r} for one" if unknown else ", in another order or number"
                raise WeightsError(
                    f"{len(unknown)} of {len(own)} classes of {name} are not among the {len(trained)} that "
                    f"{self.weights} was trained on{example}; check data.root"
                )
            relabel(trained)
            facts = replace(facts, num_outputs=len(trained), output_names=trained)
        return facts

    def evaluate(self, task: Task[Any], data: Data) -> dict[str, float]:
        """Loads the weights and evaluates them on all evaluation sets."""
        device = self._ranks.device
        if distributed.is_main():
            evaluated = "; ".join(evaluation.dataset.describe() for evaluation in data.evaluations.values())
            print(f"data: {evaluated}\nweights: {self.weights}", flush=True)
        self._check_hash()
        load_weights(self.weights, task.network)
        place(task, self.config, device)
        return full_names(
            {
                name: evaluate(task, name, evaluation.dataset, evaluation.batches, self.config, device)
                for name, evaluation in data.evaluations.items()
            }
        )

    def record(self, metrics: dict[str, float]) -> float:
        """Prints the metrics, writes them beside the weights and compares them with the training's own record."""
        name, value = headline(self.config, metrics)
        if distributed.is_main():
            print("  ".join(f"{key} {number:.6g}" for key, number in metrics.items()))
            path = self.weights.with_name(f"{self.weights.stem}.eval.json")
            conditions = circumstances(self._ranks.device, distributed.world_size())
            write_json(path, evaluation_record(self.config, self.weights, metrics, conditions))
            if self.result is not None:
                recorded = self.result["metrics"].get(name)
                is_equal = recorded == (value if math.isfinite(value) else None)  # as records have it
                verdict = "equal to" if is_equal else f"{value!r}, different from the {recorded!r} of"
                print(f"{name} is {verdict} the training's record")
            print(f"written with the whole configuration to {path}")
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
