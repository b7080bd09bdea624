"""What an undisturbed run leaves, and whether a disturbed one left the same."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CLOCK = ("images_per_second", "data_wait", "memory_gib")  # fields of a log entry that no two runs share


@dataclass(frozen=True)
class Outcome:
    """Weights by file, log entries without clock readings, metrics of the record, and what the record adds."""

    weights: dict[str, str]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]
    damaged_at: tuple[int, ...]


def read_outcome(folder: Path) -> Outcome:
    """Of a finished run."""
    record = json.loads((folder / "result.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return Outcome(
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.safetensors"))},
        [{key: value for key, value in line.items() if key not in CLOCK} for line in lines],
        record["metrics"],
        tuple(record.get("log_damaged_at", ())),
    )


def differences(expected: Outcome, folder: Path) -> Iterator[str]:
    """One line for each thing that is not as after the undisturbed run; none where nothing was lost."""
    try:
        found = read_outcome(folder)
    except (OSError, ValueError, KeyError) as error:
        yield f"the run is not whole: {error}"
        return
    if found.weights != expected.weights:
        yield "other weights"
    if found.metrics != expected.metrics:
        yield "other metrics"
    if found.log != expected.log and not found.damaged_at:
        places = [(entry["step"], entry["split"]) for entry in found.log]
        doubled = len(places) - len(set(places))
        yield f"another log ({len(found.log)} entries in place of {len(expected.log)}, {doubled} doubled)"
    left = [path.name for path in folder.glob(".*.tmp")]
    if left:
        yield f"temporary files left: {left}"
    if is_locked(folder):
        yield "the folder is still locked"


def is_locked(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    number = os.open(folder / "lock", os.O_RDWR)
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(number)
    return False
