"""From the configuration to a data set."""

from pathlib import Path

import torch
from torch import Tensor

from drconv.config import DataConfig
from drconv.data.hashing import hash_integers
from drconv.data.source import FileSource, Source, check_same_classes, class_folders, split_folder
from drconv.errors import ConfigError
from drconv.tasks.classification.dataset import PictureDataset, balanced_choice
from drconv.tasks.classification.imagenet import index_flat_validation, is_flat
from drconv.tasks.classification.memory import DecodedSource, GeneratedSource, load_digits
from drconv.tasks.classification.transforms import EvalTransform, TrainTransform

_HOLDOUT_KEY, _FRACTION_KEY = 0, 1


def build_dataset(config: DataConfig, split: str, seed: int = 0) -> PictureDataset:
    """Build the training or the evaluation data set.

    With ``data.holdout`` both come from the training pictures: a cut of that share of every class, the same
    for every seed, is left out of training and evaluated on, so that choices never touch the validation set.

    Args:
        config: the ``data`` section.
        split: train or val.
        seed: decides which pictures ``data.fraction`` keeps.

    Raises:
        ValueError: an unknown split.
        FileNotFoundError: a folder is missing; the message has the expected tree.
        DataError: the folders contradict each other.
        ConfigError: an unknown ``data.name``; another number of classes than ``data.num_classes``; ``data.holdout``
            and ``data.fraction`` leave no picture.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split={split} does not exist; use train or val")
    if config.name not in _SOURCES:
        raise ConfigError(f"data.name={config.name} has no pictures with labels; use one of {', '.join(_SOURCES)}")
    source = _SOURCES[config.name](config, "train" if config.holdout else split)
    _check_number_of_classes(source, config)
    source = DecodedSource(source) if config.in_memory else source
    transform = TrainTransform(config) if split == "train" else EvalTransform(config)
    positions = _positions(source.labels, config, split, seed)
    if positions is not None and len(positions) == 0:
        raise ConfigError(
            f"data.holdout={config.holdout} and data.fraction={config.fraction} leave no picture of {source.name} for "
            f"split {split}: both count whole pictures of each class; change data.holdout or data.fraction"
        )
    return PictureDataset(source, transform, config.image_size, positions, skip_broken=config.broken == "skip")


def _check_number_of_classes(source: Source, config: DataConfig) -> None:
    found, expected = len(source.classes), config.num_classes
    if expected is not None and expected != found:
        raise ConfigError(
            f"{source.name} has {found} classes, data.num_classes says {expected}; correct one of them (null counts "
            f"the folders)"
        )


def _positions(labels: Tensor, config: DataConfig, split: str, seed: int) -> Tensor | None:
    used = torch.ones(len(labels), dtype=torch.bool)
    if config.holdout:
        cut = balanced_choice(labels, config.holdout, hash_integers(_HOLDOUT_KEY))
        used = cut if split == "val" else ~cut
    positions = used.nonzero().flatten()
    if split == "train" and config.fraction < 1:
        kept = balanced_choice(labels[positions], config.fraction, hash_integers(_FRACTION_KEY, seed))
        positions = positions[kept]
    return None if len(positions) == len(labels) else positions


def _digits(config: DataConfig, split: str) -> Source:
    return load_digits(split, config)


def _generated(config: DataConfig, split: str) -> Source:
    if config.num_classes is None:
        raise ValueError("data.num_classes must be given for data=generated")
    return GeneratedSource(split, config.num_generated, config.num_classes, config.eval_resize)


def _imagefolder(config: DataConfig, split: str) -> Source:
    folder = split_folder(config.root, config.train_split, config.val_split, split)
    index = class_folders(folder)
    check_same_classes(index.classes, folder, _other_folder(config, split))
    return FileSource(index, config.max_pixels)


def _imagenet(config: DataConfig, split: str) -> Source:
    folder = split_folder(config.root, config.train_split, config.val_split, split)
    if split == "train" or not is_flat(folder):
        index = class_folders(folder)
        other = _other_folder(config, split)
        if not (other.is_dir() and is_flat(other)):
            check_same_classes(index.classes, folder, other)
        return FileSource(index, config.max_pixels)
    index = index_flat_validation(Path(str(config.root)), folder)
    check_same_classes(index.classes, folder, _other_folder(config, split))
    return FileSource(index, config.max_pixels)


def _other_folder(config: DataConfig, split: str) -> Path:
    return Path(str(config.root)) / (config.val_split if split == "train" else config.train_split)


_SOURCES = {"digits": _digits, "imagefolder": _imagefolder, "imagenet": _imagenet, "generated": _generated}
