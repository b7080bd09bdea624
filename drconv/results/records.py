"""The records kept in ``results/runs``: how they are named, read and checked for completeness. Imports no torch."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drconv.errors import UserError

REQUIRED = (
    "status",
    "metrics",
    "weights",
    "all_metrics",
    "seed",
    "experiment",
    "steps",
    "wall_time_s",
    "train",
    "data",
    "cost",
    "config",
    "config_hash",
    "weights_sha256",
    "code",
    "hardware",
    "command",
    "date",
)


class RecordError(UserError):
    """A record is damaged, incomplete or contradicts another one."""


@dataclass(frozen=True)
class Record:
    """A finished run as its ``result.json`` tells it."""

    path: Path
    content: dict[str, Any]

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
        """Name of the headline: what the experiment names, else the first that the task computes."""
        return self.content["experiment"]["metric"] or next(iter(self.content["metrics"]))

    @property
    def value(self) -> float:
        return self.content["metrics"][self.metric]

    @property
    def is_dirty(self) -> bool:
        """Whether the code differed from its commit, or had none."""
        return self.content["code"]["dirty"] is not False

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
        content = json.loads(path.read_text())
    except ValueError:
        raise RecordError(f"{path} is not JSON; run the experiment again or delete it") from None
    missing = [key for key in REQUIRED if key not in content]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}; run the experiment again or delete it")
    if content["status"] != "complete":
        raise RecordError(f"{path} has status {content['status']}; only complete runs are recorded")
    if not content["experiment"].get("id"):
        raise RecordError(f"{path} belongs to no experiment; train with experiment=... to record a run")
    record = Record(path, content)
    if not isinstance(content["metrics"].get(record.metric), int | float):
        raise RecordError(f"{path} has no number for its metric {record.metric}; run the experiment again or delete it")
    return record


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
    """Entries of a ``metrics.jsonl``, or none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
