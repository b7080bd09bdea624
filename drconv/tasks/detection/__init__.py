"""Object detection and instance segmentation on COCO: boxes and masks, average precision."""

from drconv.tasks.detection.average_precision import AveragePrecision
from drconv.tasks.detection.dataset import CocoDataset, build_dataset
from drconv.tasks.detection.task import Detection

__all__ = ["AveragePrecision", "CocoDataset", "Detection", "build_dataset"]
