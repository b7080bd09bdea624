"""A trained network opened again: the folder of a finished run, or one that ``drconv publish`` wrote from it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from drconv.compose import load_config
from drconv.config import Config
from drconv.errors import RunFolderError, WeightsError
from drconv.files import file_hash, read_json
from drconv.weights import load_weights, output_names

from .factory import create_model


def load_model(folder: str | Path) -> nn.Module:
    """The network of a folder with the weights that its record counts, in evaluation mode, on the CPU.

    Needs no data, no network connection and none of the modules that the run named; nothing in the folder is run.

    Args:
        folder: with ``config.yaml``, ``result.json`` and the weights.

    Returns:
        The network. Besides its own members it has ``config``, the run's configuration (``config.data`` says which
        pixels it takes), and ``output_names``, the names of the classes, none for faces.

    Raises:
        RunFolderError: no finished run, or a damaged one.
        WeightsError: the weights are not there, or not those that the record counts.
    """
    folder = Path(folder)
    config = load_config(folder)
    path = weights_of(folder)
    names = output_names(path)
    network: Any = create_model(config.model, _num_outputs(folder, config, names), input_size_of(config))
    if config.task.name == "detection":
        network.register_buffer("category_ids", torch.zeros(len(names), dtype=torch.int64))  # filled from the weights
    load_weights(path, network)
    network.config, network.output_names = config, names
    return network.eval()


def weights_of(folder: Path) -> Path:
    """The weights file that the record in the folder counts, after a look at its hash.

    Raises:
        RunFolderError: there is no record, or it is damaged.
        WeightsError: the file is missing or another one.
    """
    record = read_record(folder)
    kind = record.get("weights")
    path = folder / ("model.safetensors" if kind == "last" else f"model_{kind}.safetensors")
    if not path.is_file():
        raise WeightsError(f"{path} is missing, the weights that {folder}/result.json counts; restore it")
    if file_hash(path) != record.get("weights_sha256", {}).get(kind):
        raise WeightsError(f"{path} is not the file that result.json counts (sha256 differs); restore it")
    return path


def read_record(folder: Path) -> dict[str, Any]:
    """``result.json`` of a folder.

    Raises:
        RunFolderError: there is none, or it is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise RunFolderError(f"run={folder} is not finished: no result.json; the training command continues it")
    try:
        record = read_json(path)
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{path} is damaged ({error}); restore it") from None
    if not isinstance(record, dict) or "weights" not in record:
        raise RunFolderError(f"{path} is no record of a run; restore it")
    return record


def input_size_of(config: Config) -> tuple[int, int] | None:
    """Rows and columns of the pictures; None where they differ from picture to picture, or the network decides."""
    side = config.data.image_size
    return (side, side) if config.task.name not in ("detection", "identification") else None


def _num_outputs(folder: Path, config: Config, names: list[str]) -> int | None:
    if config.task.name == "identification":
        return None  # the classes belong to the margin head
    if names:
        return len(names)
    counted = read_record(folder).get("data", {}).get("train", {}).get("classes")
    return counted or config.data.num_classes
