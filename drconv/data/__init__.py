"""Data: sources of pictures, augmentation, and loaders that give the same samples on any number of processes."""

from drconv.data.build import build_dataset
from drconv.data.dataset import PictureDataset
from drconv.data.loader import Batch, Loader, eval_loader, prepare, train_loader
from drconv.errors import DataError

__all__ = [
    "Batch",
    "DataError",
    "Loader",
    "PictureDataset",
    "build_dataset",
    "eval_loader",
    "prepare",
    "train_loader",
]
