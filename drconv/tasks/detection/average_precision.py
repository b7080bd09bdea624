"""Average precision by pycocotools, from detections of all ranks; pycocotools only ever sees private copies.

It reads a ground-truth id of 0 as "no match", takes a box that is not a number for a perfect one, changes the records
it is given, decides the size of a mask by a box if there is one, and fails on an empty list.
"""

import contextlib
import copy
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drconv import distributed
from drconv.files import replace_file, without_infinities
from drconv.tasks.detection.dataset import CocoDataset

MOST = 100  # detections of a picture, over all classes, as the official server has it
KINDS = {"box": "bbox", "mask": "segm"}
AREAS = ("small", "medium", "large")

Record = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """The detections of one picture.

    Attributes:
        index: of the sample.
        boxes: float64 (n, 4), corners in pixels of the original picture.
        scores: float64 (n,).
        labels: (n,), from 1.
        masks: compressed runs, or None without a mask head.
    """

    index: int
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: list[bytes] | None = None


class AveragePrecision:
    """AP, AP50 and AP75 in percent, by size and by class, for boxes and, where there are any, for masks.

    Args:
        dataset: the evaluation set; only the pictures that were added are scored.
        folder: where the results are written, as the official JSON, or None.
        name: of these files.
        kinds: "box", or "box" and "mask".
    """

    def __init__(
        self,
        dataset: CocoDataset,
        folder: Path | None = None,
        name: str = "val",
        kinds: tuple[str, ...] = ("box", "mask"),
    ) -> None:
        self.dataset, self.folder, self.name, self.kinds = dataset, folder, name, kinds
        self.found: list[Found] = []
        self.by_class: dict[str, dict[str, float]] = {}  # on rank 0, after compute()

    def add(self, found: Found) -> None:
        """Takes the detections of a picture in: finite ones, the best ``MOST``, by falling score."""
        finite = np.isfinite(found.boxes).all(1) & np.isfinite(found.scores)
        order = np.argsort(-found.scores, kind="stable")
        order = order[finite[order]][:MOST]
        masks = None if found.masks is None else [found.masks[i] for i in order]
        self.found.append(Found(found.index, found.boxes[order], found.scores[order], found.labels[order], masks))

    def compute(self) -> dict[str, float]:
        """The numbers over all ranks; a class or size without ground truth counts for nothing."""
        gathered = distributed.gather_objects(self.found)
        return distributed.on_main(lambda: self._score([found for part in gathered for found in part]))

    def _score(self, found: list[Found]) -> dict[str, float]:
        found = sorted(found, key=lambda one: one.index)
        repeated = len(found) - len({one.index for one in found})
        assert not repeated, f"{repeated} pictures were evaluated twice"
        metrics: dict[str, float] = {}
        for kind in self.kinds:
            records = list(results(self.dataset, found, kind))
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                replace_file(self.folder / f"{self.name}.{KINDS[kind]}.json", json.dumps(records))
            truth = ground_truth(self.dataset, [one.index for one in found], kind)
            evaluation = evaluate(truth, records, KINDS[kind])
            known = {name: value for name, value in summary(evaluation).items() if not np.isnan(value)}
            metrics |= {f"{kind}_{name}": value for name, value in known.items()}
            for name, value in class_precision(evaluation).items():
                self.by_class.setdefault(name, {})[f"{kind}_ap"] = value
        if self.folder is not None:
            table = json.dumps(without_infinities(self.by_class), indent=1)
            replace_file(self.folder / f"{self.name}.classes.json", table)
        return {**metrics, "pictures": len(found), "detections": sum(len(one.scores) for one in found)}


def results(dataset: CocoDataset, found: list[Found], kind: str) -> Iterator[Record]:
    """Records of the official results format, with boxes or masks, in the order of pictures and falling scores."""
    for one in found:
        part, position = dataset.locate(one.index)
        key, size = part.index.key(position), list(part.index.size(position))
        for i, (x1, y1, x2, y2) in enumerate(one.boxes.tolist()):
            record: Record = {"image_id": key, "category_id": dataset.categories[int(one.labels[i]) - 1][0]}
            if kind == "box":
                record["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            else:
                assert one.masks is not None
                record["segmentation"] = {"size": size, "counts": one.masks[i].decode()}
            yield {**record, "score": float(one.scores[i])}


def ground_truth(dataset: CocoDataset, indices: list[int], kind: str) -> COCO:
    """pycocotools' ground truth of some pictures, ids from 1; for masks, of the objects that have one."""
    images: list[Record] = []
    annotations: list[Record] = []
    for index in indices:
        part, position = dataset.locate(index)
        known, size = part.index, part.index.size(position)
        images.append({"id": known.key(position), "height": size[0], "width": size[1]})
        for i in known.annotations(position):
            mask = known.masks[i]
            if kind == "mask" and not mask:
                continue
            record: dict[str, Any] = {
                "id": len(annotations) + 1,
                "image_id": known.key(position),
                "category_id": dataset.categories[int(known.labels[i]) - 1][0],
                "bbox": known.boxes[i].tolist(),
                "area": float(known.areas[i]),
                "iscrowd": int(known.crowd[i]),
            }
            if kind == "mask":
                record["segmentation"] = {"size": list(size), "counts": mask}
            annotations.append(record)
    categories = [{"id": key, "name": name} for key, name in dataset.categories]
    return _coco({"images": images, "annotations": annotations, "categories": categories})


def evaluate(truth: COCO, records: list[Record], kind: str) -> COCOeval:
    """pycocotools' evaluation of results; ``kind`` is bbox or segm. The records stay as they are."""
    with contextlib.redirect_stdout(io.StringIO()):
        # loadRes fails on an empty list.
        nothing = {**truth.dataset, "annotations": []}
        detections = truth.loadRes(copy.deepcopy(records)) if records else _coco(nothing)
        evaluation = COCOeval(truth, detections, kind)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def summary(evaluation: COCOeval) -> dict[str, float]:
    """Percent; NaN where there is no ground truth."""
    # Thresholds, recalls, classes, areas (all, small, medium, large), limits (1, 10, 100).
    precision = evaluation.eval["precision"][..., -1]
    values = {"ap": precision[..., 0], "ap50": precision[0, ..., 0], "ap75": precision[5, ..., 0]}
    values |= {f"ap_{name}": precision[..., area] for area, name in enumerate(AREAS, 1)}
    return {name: _mean(value) for name, value in values.items()}


def class_precision(evaluation: COCOeval) -> dict[str, float]:
    """AP of every class by name."""
    precision = evaluation.eval["precision"][..., 0, -1]
    names = [evaluation.cocoGt.cats[key]["name"] for key in evaluation.params.catIds]
    return {name: _mean(precision[:, :, k]) for k, name in enumerate(names)}


def _mean(values: NDArray[np.float64]) -> float:
    known = values[values > -1]
    return 100 * float(known.mean()) if known.size else float("nan")


def _coco(content: Record) -> COCO:
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
