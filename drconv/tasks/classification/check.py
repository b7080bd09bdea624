"""Looking over a data set before a long run: counts, classes, and whether a few pictures decode."""

from collections.abc import Iterator

import torch

from drconv.config import DataConfig
from drconv.errors import DataError
from drconv.tasks.classification import imagenet
from drconv.tasks.classification.dataset import PictureDataset

_IMAGENET_COUNTS = {"train": imagenet.NUM_TRAIN, "val": imagenet.NUM_VAL}


def find_problems(dataset: PictureDataset, config: DataConfig, split: str, decodes: int) -> Iterator[str]:
    """Compare a split with what ImageNet must have (``data.name=imagenet``), and decode pictures spread over it.

    Args:
        dataset: the split.
        config: its configuration.
        split: train or val.
        decodes: number of pictures to decode.

    Yields:
        one line for each problem.
    """
    if config.name == "imagenet":
        yield from _imagenet_problems(dataset, split)
    for index in torch.linspace(0, len(dataset) - 1, min(decodes, len(dataset))).long().tolist():
        try:
            dataset[(index, 0)]
        except DataError as error:
            yield str(error)


def summarise(dataset: PictureDataset) -> str:
    """One line: where, how many pictures and classes, and the smallest and largest class."""
    counts = torch.bincount(dataset.labels.long(), minlength=len(dataset.classes))
    return f"{dataset.describe()}, {int(counts.min())} to {int(counts.max())} pictures in a class"


def _imagenet_problems(dataset: PictureDataset, split: str) -> Iterator[str]:
    if len(dataset.classes) != imagenet.NUM_CLASSES:
        yield f"{split}: {len(dataset.classes)} classes, and ILSVRC2012 has {imagenet.NUM_CLASSES}"
    if len(dataset) != _IMAGENET_COUNTS[split]:
        yield f"{split}: {len(dataset):,} pictures, and ILSVRC2012 has {_IMAGENET_COUNTS[split]:,}"
    if any(not imagenet.is_wnid(name) for name in dataset.classes):
        yield f"{split}: classes are not named by their wnids, like n01440764"
