"""From run folders to ``results/runs``: the record of each finished run and its thinned curve. Imports no torch."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from drconv.results.read_records import Record, RecordError, read_curve, read_record

MAX_ENTRIES = 100  # training entries that a curve keeps
MAX_REGIONS = 30  # of these, those that keep the guides' statistics, the larger part
DIGITS = 4
MACHINE_KEYS = ("images_per_second", "data_wait", "memory_gib")  # of one machine's day, not of the run
SET_ASIDE = re.compile(r"\.old\d+$")  # what overwrite=true leaves behind


def find_results(folders: Iterable[Path]) -> list[Path]:
    """Every ``result.json`` at or below the folders, those of runs that were set aside left out."""
    found = {path for folder in folders for path in folder.rglob("result.json")}
    return sorted(path for path in found if not SET_ASIDE.search(path.parent.name))


def collect(result: Path, runs: Path) -> Record | None:
    """Copies one record and its curve.

    Returns:
        The new record, or None where it was there already.

    Raises:
        RecordError: no record of an experiment; its weights are not there or are others than it says; another record
            of this run is kept already.
    """
    record = read_record(result)
    check_weights(record, result.parent)
    target = runs / f"{record.stem}.json"
    if target.exists():
        kept = read_record(target)
        if _outcome(kept) != _outcome(record):
            raise RecordError(
                f"{target} holds another outcome of this run ({kept.value} of {kept.content['date']}; {result} has "
                f"{record.value}); delete it to take the new one"
            )
        return None
    runs.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(entry) for entry in thin_curve(read_curve(result.with_name("metrics.jsonl")))]
    target.with_suffix(".jsonl").write_text("".join(f"{line}\n" for line in lines))
    target.write_text(json.dumps(without_local_paths(record.stored), indent=2) + "\n")
    return read_record(target)


def check_weights(record: Record, folder: Path) -> None:
    """Compares the weights in a run folder with the record.

    Raises:
        RecordError: a file is missing or its sha256 differs.
    """
    for kind, expected in record.content["weights_sha256"].items():
        path = folder / ("model.safetensors" if kind == "last" else f"model_{kind}.safetensors")
        if not path.is_file():
            raise RecordError(f"{record.path} records weights that are not there: {path}; run again")
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise RecordError(f"{record.path} does not match {path}: sha256 {found[:12]}, recorded {expected[:12]}")


def thin_curve(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All evaluations as they are; of the training entries a choice with the first and the last, rounded."""
    train = [number for number, entry in enumerate(entries) if entry["split"] == "train"]
    chosen = _choose(train, MAX_ENTRIES)
    with_regions = _choose(chosen, MAX_REGIONS)
    kept = []
    for number, entry in enumerate(entries):
        if entry["split"] != "train":
            kept.append(entry)
        elif number in chosen:
            dropped = MACHINE_KEYS if number in with_regions else (*MACHINE_KEYS, "regions")
            kept.append(round_floats({key: value for key, value in entry.items() if key not in dropped}))
    return kept


def _choose(numbers: list[int], limit: int) -> list[int]:
    """At most ``limit`` of them, closer together at the beginning, where guides collapse if they do."""
    if len(numbers) <= limit:
        return numbers
    places = {round((number / (limit - 1)) ** 2 * (len(numbers) - 1)) for number in range(limit)}
    return [numbers[place] for place in sorted(places)]


def without_local_paths(content: dict[str, Any]) -> dict[str, Any]:
    """The record with absolute paths cut to their last part; they belong to a machine and decide nothing.

    ``weights``, which a run started from, does decide: it stays as it was given.
    """
    config = {**content["config"], "data": dict(content["config"]["data"])}
    for section, key in ((config, "run"), (config, "outputs"), (config["data"], "root")):
        if section.get(key) is not None:
            section[key] = _shorten(section[key])
    command = re.sub(r"(?<==)/[^\s,'\"]+", lambda found: _shorten(found[0]), content["command"])
    return {**content, "config": config, "command": command}


def _shorten(path: str) -> str:
    """An absolute path relative to the working directory if it is below, else its last part."""
    if not Path(path).is_absolute():
        return path
    below = Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if below else Path(path).name


def _outcome(record: Record) -> tuple[Any, ...]:
    return record.content["metrics"], record.content["weights_sha256"]


def round_floats(value: Any) -> Any:
    """Every number to the digits that a curve keeps."""
    if isinstance(value, dict):
        return {key: round_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [round_floats(item) for item in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
