"""The task of Table 3: detection and instance segmentation, box and mask AP."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drconv.config import CocoConfig, Config
from drconv.data import normalise, to_device
from drconv.errors import DataError
from drconv.interfaces import Batch, Dataset, Facts, Outputs, Task
from drconv.nn.cost import NetworkCost, count_cost
from drconv.tasks.detection.average_precision import AveragePrecision, Found
from drconv.tasks.detection.dataset import CocoDataset, CocoFacts, build_dataset
from drconv.tasks.detection.masks import encode_masks
from drconv.tasks.detection.scenes import scenes_folder
from drconv.tasks.detection.transforms import fit, restore_boxes
from drconv.tasks.detection.weights import load_body
from drconv.weights import LoadReport

logger = logging.getLogger(__name__)

TYPICAL = (480, 640)  # rows and columns of the commonest picture of COCO, for which cost is counted


class Detection(Task[AveragePrecision]):
    """Batches hold ``image`` uint8 RGB (B, 3, H, W), padded, and ``sizes``; in training the targets too.

    The network is called as ``network(images, sizes, targets)`` and has ``backbone``, ``with_masks`` and
    ``freeze_stages(n)``.
    """

    def __init__(self, network: nn.Module, config: Config, facts: Facts) -> None:
        super().__init__(network, config, facts)
        self.config = config
        ids = facts.category_ids if isinstance(facts, CocoFacts) else range(1, (facts.num_outputs or 0) + 1)
        # In the weights file, so that a network is never scored under another order of the classes.
        network.register_buffer("category_ids", torch.tensor(list(ids)))
        if config.backbone is not None or config.weights is not None:
            network.freeze_stages(config.model.detector.frozen_stages)  # type: ignore[operator]
        elif config.data.name == "coco":
            logger.warning("training from random weights: the paper's numbers need those of ImageNet, backbone=FILE")

    @staticmethod
    def train_set(config: Config) -> Dataset:
        return _dataset(config, "train")

    @staticmethod
    def evaluation_sets(config: Config) -> dict[str, Dataset]:
        names = ("val", "seen") if config.data.coco.seen else ("val",)
        return {name: _dataset(config, name) for name in names}

    def forward(self, batch: Batch) -> Outputs:
        images = self._images(batch)
        names = [name for name in ("boxes", "labels", "masks") if name in batch]
        columns = zip(*(to_device(batch[name], images.device) for name in names), strict=True)
        targets = [dict(zip(names, values, strict=True)) for values in columns]
        return Outputs(self.network(images, batch["sizes"], targets))

    def evaluate(self, batch: Batch, metric: AveragePrecision) -> None:
        detections = self.network(self._images(batch), batch["sizes"])
        places = zip(batch["index"], batch["original"], batch["sizes"], strict=True)
        for found, (index, before, after) in zip(detections, places, strict=True):
            metric.add(as_found(found, index, before, after))

    def new_metric(self, device: torch.device, dataset: Dataset) -> AveragePrecision:
        assert isinstance(dataset, CocoDataset)
        known, given = self.network.category_ids.tolist(), dataset.facts.category_ids  # type: ignore[union-attr,operator]
        if known != given:
            raise DataError(
                f"the network was trained on the categories {known}, and {dataset.parts[0].index.path} has {given}; "
                f"check data.root"
            )
        config = self.config
        folder = None if config.run is None or config.runtime.dry_run else Path(config.run) / "detections"
        kinds = ("box", "mask") if self.network.with_masks else ("box",)
        return AveragePrecision(dataset, folder, dataset.name, kinds)

    def cost(self) -> NetworkCost:
        return detector_cost(self.network, self.config.data.coco)

    def compile(self, *arguments: Any, **options: Any) -> None:
        """Compiles body and pyramid for any size; proposals and heads have another number of boxes at every call."""
        self.network.get_submodule("backbone").compile(*arguments, **{"dynamic": True, **options})

    def load_backbone(self, path: Path) -> LoadReport:
        return load_body(path, self.network, self.config)

    def _images(self, batch: Batch) -> Tensor:
        """Normalised pictures, zero in their padding."""
        pixels = to_device(batch["image"], next(self.network.parameters()).device)
        images = normalise(pixels, self.config.data, self.config.runtime.channels_last)
        for image, (rows, columns) in zip(images, batch["sizes"], strict=True):
            image[:, rows:] = 0
            image[:, :, columns:] = 0
        return images


def detector_cost(network: nn.Module, coco: CocoConfig) -> NetworkCost:
    """Multiply-adds of body and FPN for the commonest picture; those of the heads depend on what is proposed.

    The parameters are the whole network's.
    """
    size = fit(TYPICAL, coco.sizes[-1], coco.max_size)
    rows, columns = (-(-side // 32) * 32 for side in size)
    backbone = count_cost(network.get_submodule("backbone"), (3, rows, columns))
    return replace(backbone, parameters=sum(parameter.numel() for parameter in network.parameters()))


def as_found(detections: dict[str, Tensor], index: int, before: tuple[int, int], after: tuple[int, int]) -> Found:
    """A picture's detections as the metric takes them.

    Args:
        detections: boxes (n, 4) in the resized picture, scores, labels, and masks (n, 1, S, S) where there are any.
        index: of the sample.
        before: rows and columns of the original picture.
        after: rows and columns that the network saw.
    """
    found: dict[str, Any] = {name: value.cpu() for name, value in detections.items()}
    boxes = restore_boxes(found["boxes"].double(), before, after)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes = boxes[kept]
    masks = encode_masks(found["masks"][kept, 0], boxes, before) if "masks" in found else None
    scores, labels = found["scores"][kept].double(), found["labels"][kept]
    return Found(index, boxes.numpy(), scores.numpy(), labels.numpy(), masks)


def _dataset(config: Config, split: str) -> CocoDataset:
    data = config.data
    if data.name == "scenes":
        data = replace(data, root=str(scenes_folder()))
    return build_dataset(data, split, needs_masks=config.model.detector.masks)
