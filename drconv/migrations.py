"""What was stored under an earlier schema, read as today's: configurations, records, resume states, typed keys.

Whoever moves or renames a key raises ``SCHEMA`` and adds what is to be done here, and nowhere else. Imports no torch.
"""

import copy
from dataclasses import asdict
from typing import Any

from drconv.config import Config

SCHEMA = 3  # of config.yaml, resume.pt and result.json; those without a number are of schema 1

# Keys of a configuration that moved: the schema they came with, the former place, today's.
MOVED: tuple[tuple[int, str, str], ...] = (
    (2, "recipe.task", "task.name"),
    (2, "recipe.label_smoothing", "task.classification.label_smoothing"),
)
# Keys that are gone: the schema that dropped them, and their place.
DROPPED: tuple[tuple[int, str], ...] = ((2, "experiment.paper"),)  # results/paper.yaml has the printed number


def schema_of(stored: dict[str, Any]) -> int:
    """The number of the schema of something that was stored.

    Raises:
        ValueError: it is no number, or a later version's, whose keys can mean anything here.
    """
    schema = stored.get("schema", 1)
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise ValueError(f"schema {schema!r} is not a number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise ValueError(f"a later version wrote it: schema {schema}, this one knows up to {SCHEMA}; update drconv")
    return schema


def migrate_config(stored: dict[str, Any], schema: int) -> dict[str, Any]:
    """A stored configuration (nested) under today's keys; those that came later have their default.

    A default of a new key always keeps what was before, so that a record from before means the same.
    """
    config = copy.deepcopy(stored)
    for came_with, former, today in MOVED:
        if came_with > schema and (value := _take(config, former)) is not None:
            _put(config, today, value)
    for dropped_by, former in DROPPED:
        if dropped_by > schema:
            _take(config, former)
    if schema < 2 and config.get("experiment", {}).get("metric") == "top1":
        config["experiment"]["metric"] = None  # the headline needs no name
    return _fill(config, asdict(Config()))


def migrate_record(content: dict[str, Any]) -> dict[str, Any]:
    """A ``result.json`` as today's code writes it; raises a ValueError as ``schema_of`` does."""
    schema = schema_of(content)
    migrated = {**content, "schema": SCHEMA, "config": migrate_config(content["config"], schema)}
    if schema < 2:  # metrics had no name of their set, and broken pictures were the only count
        migrated["metrics"] = _of_val(content["metrics"])
        migrated["all_metrics"] = {kind: _of_val(metrics) for kind, metrics in content["all_metrics"].items()}
        if "skipped" in migrated:
            migrated["counts"] = {"skipped": migrated.pop("skipped")["train"]}
    return migrated


def migrate_resume(saved: dict[str, Any]) -> dict[str, Any]:
    """A resume state as today's code writes it; raises a ValueError as ``schema_of`` does."""
    schema = schema_of(saved)
    if schema < 2:  # what the log keeps between its lines had no place of its own
        counts = {"skipped": saved["skipped"]} if saved.get("skipped") else {}
        interval = {name: value for name, value in saved["interval"].items() if name != "skipped"}
        log = {"sums": interval, "steps": saved["interval_steps"], "counts": {}, "totals": counts}
        saved = {**saved, "log": {**log, "last_entry": saved["last_entry"]}}
    if "config" in saved:
        saved = {**saved, "config": migrate_config(saved["config"], schema)}
    return {**saved, "schema": SCHEMA}


def migrate_override(argument: str) -> str:
    """A ``key=value`` of the command line with the key's place of today; anything else as it is."""
    key, sign, value = argument.partition("=")
    for _, former, today in MOVED:
        if key == former and sign:
            return f"{today}={value}"
    return argument


def _of_val(metrics: dict[str, Any]) -> dict[str, Any]:
    return {f"val/{name}": value for name, value in metrics.items()}


def _take(config: dict[str, Any], key: str) -> Any:
    """Removes a dotted key; None where it is not there."""
    *sections, name = key.split(".")
    for section in sections:
        config = config.get(section) or {}
    return config.pop(name, None)


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[name] = value


def _fill(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Adds the keys that are not there; those without a default, such as ``model.name``, are left to the schema."""
    filled = dict(config)
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(filled.get(key, {}), dict):
            filled[key] = _fill(filled.get(key) or {}, default)
        elif default != "???":
            filled.setdefault(key, default)
    return filled
