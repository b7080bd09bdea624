"""``result.json``: the record of a finished run, from which every table is made."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from drconv.config import Config
from drconv.errors import DataError
from drconv.files import file_hash, replace_file, without_infinities
from drconv.identity import config_hash, select_binding
from drconv.migrations import SCHEMA
from drconv.results import provenance
from drconv.tasks.registry import headline_name


def run_record(
    config: Config,
    metrics: dict[str, dict[str, float]],
    weights: dict[str, Path],
    details: dict[str, Any],
    circumstances: dict[str, Any],
) -> dict[str, Any]:
    """The record of a training run. ``metrics`` and ``weights`` (files) are by kind: last, and ema where kept.

    The headline is the last checkpoint's (D10); with ``recipe.ema_decay`` it is that of the averaged weights, which
    are what such a recipe produces.
    """
    kind = "ema" if "ema" in metrics else "last"
    return {
        "schema": SCHEMA,
        "status": "complete",
        "metrics": metrics[kind],
        "weights": kind,
        "all_metrics": metrics,
        "seed": config.seed,
        "experiment": asdict(config.experiment),
        **details,
        "config": asdict(config),
        "config_hash": config_hash(select_binding(asdict(config))),
        "weights_sha256": {kind: file_hash(path) for kind, path in weights.items()},
        **circumstances,
    }


def evaluation_record(
    config: Config, weights: Path, metrics: dict[str, float], circumstances: dict[str, Any]
) -> dict[str, Any]:
    """What ``eval.py`` writes beside the weights."""
    return {
        "schema": SCHEMA,
        "metrics": metrics,
        "weights": weights.name,
        "weights_sha256": file_hash(weights),
        "config": asdict(config),
        **circumstances,
    }


def circumstances(device: torch.device, num_devices: int) -> dict[str, Any]:
    """Code, versions, hardware, command and date."""
    return {
        "code": provenance.code(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(device, num_devices),
        "command": provenance.command_line(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def headline(config: Config, metrics: Mapping[str, float | None]) -> tuple[str, float]:
    """Name and value of the metric that tables show; NaN where it is null in a record, as it was not finite.

    Raises:
        DataError: it was not computed, as with an evaluation set of broken pictures alone.
    """
    name = headline_name(config.task, config.experiment.metric)
    if name not in metrics:
        found = ", ".join(metrics) or "nothing"
        raise DataError(
            f"{name} was not computed, only {found}; check the evaluation data, the task's metric and experiment.metric"
        )
    value = metrics[name]
    return name, math.nan if value is None else value


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Replaces a file."""
    replace_file(path, json.dumps(without_infinities(content), indent=2, allow_nan=False) + "\n")
