"""The records kept in ``results/runs``: how they are named, read and checked for completeness. Imports no torch."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drconv.errors import UserError
from drconv.files import read_json
from drconv.migrations import migrate_record
from drconv.tasks.registry import TASKS

# What every record has, by dotted key.
REQUIRED: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "metrics": dict,
    "weights": str,
    "all_metrics": dict,
    "seed": int,
    "experiment.id": (str, type(None)),
    "experiment.metric": (str, type(None)),
    "experiment.decisions": list,
    "steps": int,
    "wall_time_s": (int, float),
    "train": dict,
    "data": dict,
    "config.seed": int,
    "config.model.conv": str,
    "config.model.drconv": dict,
    "config.recipe": dict,
    "config.data": dict,
    "config.experiment": dict,
    "config.logging.every": int,
    "config.runtime": dict,
    "config_hash": str,
    "weights_sha256": dict,
    "code": dict,
    "hardware.device": str,
    "hardware.num_devices": int,
    "command": str,
    "date": str,
}
COSTS: dict[str, type | tuple[type, ...]] = {
    "cost.parameters": int,
    "cost.multiply_adds": int,
    "cost.paper_multiply_adds": int,
}
TAIL = 0.1  # share of a run's steps, its last, that the training accuracy is taken over


class RecordError(UserError):
    """A record is damaged, incomplete or contradicts another one."""


@dataclass(frozen=True)
class Record:
    """A finished run as its ``result.json`` tells it."""

    path: Path
    content: dict[str, Any]  # as today's schema has it
    stored: dict[str, Any]  # as it is in the file

    @property
    def id(self) -> str:
        """The experiment, such as table1/drconv_shufflenetv2_0.5x."""
        return self.content["experiment"]["id"]

    @property
    def seed(self) -> int:
        return self.content["seed"]

    @property
    def stem(self) -> str:
        """Name of the files in ``results/runs``, without suffix."""
        return f"{self.id.replace('/', '__')}-seed{self.seed}-{self.content['config_hash'][:8]}"

    @property
    def metric(self) -> str:
        """Name of the headline: what the experiment names, else the task's."""
        task = self.content["config"]["task"]["name"]
        named = self.content["experiment"].get("metric")
        if task not in TASKS:  # of a task from outside: the first that it computed
            return named or next(iter(self.content["metrics"]))
        return TASKS[task].full_name(named) or named if named else TASKS[task].headline.metric

    @property
    def value(self) -> float:
        return self.content["metrics"][self.metric]

    @property
    def training_accuracy(self) -> float | None:
        """Mean of the headline over the curve's training entries in the last tenth of the steps, each as long as the
        steps it covers.

        None where none was logged.
        """
        name = self.metric.rpartition("/")[2]
        first, every = (1 - TAIL) * self.content["steps"], max(1, self.content["config"]["logging"]["every"])
        entries = [entry for entry in read_curve(self.curve) if entry["split"] == "train" and name in entry]
        tail = {entry["step"]: entry[name] for entry in entries if entry["step"] > first}
        return statistics.fmean(tail.values(), [step % every or every for step in tail]) if tail else None

    @property
    def is_dirty(self) -> bool:
        """Whether the code differed from its commit, or had none."""
        return self.content["code"].get("dirty") is not False

    @property
    def curve(self) -> Path:
        """The entries of ``metrics.jsonl`` that are kept beside the record."""
        return self.path.with_suffix(".jsonl")


def read_record(path: Path) -> Record:
    """Reads a ``result.json`` or a file of ``results/runs``.

    Raises:
        RecordError: the file is no JSON, lacks something, or is not of a complete run of an experiment.
    """
    try:
        content = read_json(path)
    except (ValueError, OSError):
        raise RecordError(f"{path} is not JSON; run the experiment again or delete it") from None
    costs = COSTS if not isinstance(content, dict) or content.get("cost", 0) is not None else {}  # null: not countable
    required = REQUIRED | costs
    lacking = [key for key, kind in required.items() if not isinstance(_look_up(content, key), kind)]
    if lacking:
        raise RecordError(f"{path} lacks {', '.join(lacking)}; run the experiment again or delete it")
    if content["status"] != "complete":
        raise RecordError(f"{path} has status {content['status']}; only complete runs are recorded")
    if not content["experiment"].get("id"):
        raise RecordError(f"{path} belongs to no experiment; train with experiment=... to record a run")
    if not content["metrics"]:
        raise RecordError(f"{path} has no metric; run the experiment again or delete it")
    try:
        record = Record(path, migrate_record(content), content)
        headline = record.metric
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    except (TypeError, AttributeError, KeyError):
        raise RecordError(f"{path} has sections that are no sections; run the experiment again or delete it") from None
    metrics = record.content["metrics"]
    for name in {headline, *metrics}:
        if not _is_finite(metrics.get(name)):
            raise RecordError(f"{path} has no number for its metric {name}; run the experiment again or delete it")
    return record


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _look_up(content: Any, key: str) -> Any:
    """The value of a dotted key, None where it is not there."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content


def read_records(runs: Path) -> tuple[list[Record], list[str]]:
    """All records of a folder by experiment and seed, and a line for each file that is none."""
    records, problems = [], []
    for path in sorted(runs.glob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            problems.append(str(error))
    return sorted(records, key=lambda record: (record.id, record.seed, record.stem)), problems


def read_curve(path: Path) -> list[dict[str, Any]]:
    """Entries of a ``metrics.jsonl``, or none where there is no file.

    Raises:
        RecordError: a line is cut or no entry.
    """
    entries = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            entry = json.loads(line)
            is_whole = isinstance(entry["split"], str) and isinstance(entry["step"], int)
        except (ValueError, TypeError, KeyError, RecursionError):
            is_whole = False
        if not is_whole:
            raise RecordError(f"{path}, line {number}, is no entry of a curve; restore it or delete the line")
        entries.append(entry)
    return entries
