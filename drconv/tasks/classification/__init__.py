"""Image classification: pictures with one label, cross-entropy, top-1 and top-5 accuracy."""

from drconv.tasks.classification.data import build_dataset
from drconv.tasks.classification.dataset import PictureDataset
from drconv.tasks.classification.task import Classification

__all__ = ["Classification", "PictureDataset", "build_dataset"]
