"""What the data of all tasks share: samplers and loaders, equal on any number of processes; decoding; file indexes."""

from drconv.data.loader import Loader, eval_loader, train_loader
from drconv.data.moving import normalise, prepare, to_device
from drconv.errors import DataError

__all__ = ["DataError", "Loader", "eval_loader", "normalise", "prepare", "to_device", "train_loader"]
