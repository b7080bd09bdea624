"""Pictures with boxes, labels and masks, from COCO's files."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drconv.config import CocoConfig, DataConfig
from drconv.data.decode import MAX_PIXELS, read_picture
from drconv.errors import DataError, printable
from drconv.interfaces import Batch, Facts, Fingerprint, Sample, SampleKey
from drconv.tasks.detection import transforms
from drconv.tasks.detection.index import CocoIndex, load_coco

PADDING = 32  # batches are padded to multiples of it
GROUP = 2  # pictures of like shape that stand together: a device's share of the paper's batch of 16 on 8
# Annotation files below annotations/, and the folder of their pictures.
LAYOUTS: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    "2017": {
        "train": (("instances_train2017.json", "train2017"),),
        "val": (("instances_val2017.json", "val2017"),),
    },
    "2014": {  # trainval35k and minival, the same pictures as train2017 and val2017
        "train": (("instances_train2014.json", "train2014"), ("instances_valminusminival2014.json", "val2014")),
        "val": (("instances_minival2014.json", "val2014"),),
    },
}


@dataclass(frozen=True)
class CocoFacts(Facts):
    """Facts with the categories' ids: output L + 1 is the category ``category_ids[L]``; output 0 is background."""

    category_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One annotation file and the folder of its pictures."""

    index: CocoIndex
    folder: Path


class CocoDataset:
    """Samples by ``(index, seed)``.

    In training, pictures without a box to train on are left out (crowds are no such boxes), as detectron2 does. In
    evaluation every picture counts: what is found where nothing is costs precision.

    Args:
        parts: annotation files with equal categories.
        config: sizes, whether empty pictures are trained on, EXIF.
        flip: chance of a horizontal flip in training.
        is_training: whether samples are drawn and have targets.
        needs_masks: whether targets have masks; objects without one are then left out, as in detectron2.
        max_pixels: a picture with more is refused.
        name: of the set; results are written under it.
        fraction: share of the files' pictures that is used, every fourth one for 0.25.

    Raises:
        DataError: the files' categories differ, or no picture is left.
    """

    def __init__(
        self,
        parts: list[Part],
        config: CocoConfig,
        flip: float = 0.0,
        is_training: bool = False,
        needs_masks: bool = True,
        max_pixels: int = MAX_PIXELS,
        name: str = "val",
        fraction: float = 1.0,
    ) -> None:
        self.parts, self.config, self.flip, self.name = parts, config, flip, name
        self.is_training, self.needs_masks, self.max_pixels = is_training, needs_masks, max_pixels
        self.categories = parts[0].index.categories
        for part in parts[1:]:
            if part.index.categories != self.categories:
                raise DataError(f"{part.index.path} and {parts[0].index.path} have different categories")
        self._firsts = np.cumsum([0, *(len(part.index) for part in parts)])
        used = np.arange(self._firsts[-1]) * fraction % 1 < fraction
        self._used = int(used.sum())
        if is_training and not config.keep_empty:
            used &= np.concatenate([_has_objects(part.index) for part in parts])
        positions = np.flatnonzero(used)
        if not len(positions):
            raise DataError(f"{parts[0].index.path} has no picture{' with a box to train on' if is_training else ''}")
        if not is_training and all(part.index.crowd.all() for part in parts):
            raise DataError(f"{parts[0].index.path} has no object but crowds, and without one there is no precision")
        self.positions = torch.from_numpy(positions)
        self._check_files()

    def _check_files(self) -> None:
        """Before a step is spent: a missing picture of an evaluation set would be met hours later."""
        listed = {part.folder: set(os.listdir(part.folder)) for part in self.parts}
        missing = []
        for part, position in map(self.locate, range(len(self))):
            name = part.index.name(position)
            if name not in listed[part.folder] and not (part.folder / name).is_file():
                missing.append(part.folder / name)
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self)} pictures that the annotation files list do not exist, the first is "
                f"{printable(str(missing[0]))}; check data.root"
            )

    @property
    def facts(self) -> CocoFacts:
        ids, names = zip(*self.categories, strict=True)
        return CocoFacts(len(ids), None, list(names), list(ids))

    @property
    def groups(self) -> NDArray[np.int64]:
        """0 for pictures that are higher than wide, 1 for the others: padded together, unlike ones waste memory."""
        sizes = torch.cat([part.index.sizes for part in self.parts])[self.positions]
        return (sizes[:, 1] >= sizes[:, 0]).numpy().astype(np.int64)

    @property
    def group_size(self) -> int:
        return GROUP

    def __len__(self) -> int:
        return len(self.positions)

    def locate(self, index: int) -> tuple[Part, int]:
        """The annotation file of a sample, and the picture's position in it."""
        position = int(self.positions[index])
        part = int(np.searchsorted(self._firsts, position, side="right")) - 1
        return self.parts[part], position - int(self._firsts[part])

    def __getitem__(self, key: SampleKey) -> Sample:
        """One sample.

        Returns:
            image uint8 (3, H, W) RGB, index, and original, the rows and columns of the file; in training boxes float32
            (n, 4) as corners in pixels, labels (n,) from 1, and masks uint8 (n, H, W) where they are needed.

        Raises:
            DataError: the picture does not decode, or has another size than the annotations say.
        """
        index, seed = key
        part, position = self.locate(index)
        before = part.index.size(position)
        picture = self._read(part, position, before)
        config = self.config
        if self.is_training:
            change = transforms.draw_change(before, config, self.flip, seed)
        else:
            change = transforms.Change(transforms.fit(before, config.sizes[-1], config.max_size))
        sample = {"image": transforms.change_picture(picture, change), "index": index, "original": before}
        return sample | self._targets(part.index, position, change) if self.is_training else sample

    def _read(self, part: Part, position: int, size: tuple[int, int]) -> Tensor:
        path = part.folder / part.index.name(position)
        picture = read_picture(path, max_pixels=self.max_pixels, exif=self.config.exif)
        if tuple(picture.shape[1:]) != size:
            raise DataError(
                f"{path} has {picture.shape[1]} rows and {picture.shape[2]} columns, and {part.index.path} says "
                f"{size[0]} and {size[1]}; are they another file's, or is data.coco.exif the wrong way round?"
            )
        return picture

    def _targets(self, index: CocoIndex, position: int, change: transforms.Change) -> dict[str, Any]:
        chosen = [i for i in index.annotations(position) if index.trained[i]]
        masks = [index.masks[i] for i in chosen] if self.needs_masks else []
        if self.needs_masks:
            chosen, masks = [i for i, m in zip(chosen, masks, strict=True) if m], [m for m in masks if m]
        before = index.size(position)
        targets: dict[str, Any] = {
            "boxes": transforms.change_boxes(index.corners(chosen, position), before, change),
            "labels": index.labels[chosen].long(),
        }
        if self.needs_masks:
            targets["masks"] = transforms.change_masks(masks, before, change)
        return targets

    def collate(self, samples: list[Sample]) -> Batch:
        """Pictures in one tensor, zero to the right and below; everything else as lists."""
        sizes = [(sample["image"].shape[1], sample["image"].shape[2]) for sample in samples]
        rows, columns = (-(-max(side) // PADDING) * PADDING for side in zip(*sizes, strict=True))
        image = torch.zeros(len(samples), 3, rows, columns, dtype=torch.uint8)
        for place, sample, (height, width) in zip(image, samples, sizes, strict=True):
            place[:, :height, :width] = sample["image"]
        lists = {name: [sample[name] for sample in samples] for name in samples[0] if name != "image"}
        return {"image": image, "sizes": sizes, **lists}

    def describe(self) -> str:
        """One line for the log, with what was unusual in the files."""
        names = ", ".join(str(part.index.path) for part in self.parts)
        objects = sum(int(part.index.trained.sum()) for part in self.parts)
        left_out = self._used - len(self)
        text = f"{names}: {len(self):,} pictures, {objects:,} objects, {len(self.categories)} categories"
        text += f", {left_out:,} pictures without an object left out" if left_out else ""
        return "; ".join([text, *(line for part in self.parts for line in part.index.findings)])

    def fingerprint(self) -> Fingerprint:
        return {
            "pictures": len(self),
            "files": {part.index.path.name: part.index.digest for part in self.parts},
            "categories": [name for _, name in self.categories],
        }


def _has_objects(index: CocoIndex) -> NDArray[np.bool_]:
    """Whether a picture has an annotation to train on."""
    trained = np.concatenate([[0], np.cumsum(index.trained.numpy())])
    ends = index.ends.numpy()
    return trained[ends] > trained[np.concatenate([[0], ends[:-1]])]


def build_dataset(config: DataConfig, split: str, needs_masks: bool = True) -> CocoDataset:
    """The training or the evaluation set of a folder in COCO's layout.

    Args:
        config: ``root``, ``coco``, the flip's chance, and the fraction of the training pictures.
        split: train, val, or seen: the training pictures to evaluate on.
        needs_masks: whether training targets have masks.

    Raises:
        FileNotFoundError: an annotation file or a folder is missing.
        DataError: see ``read_annotations`` and ``CocoDataset``.
    """
    root, parts = Path(str(config.root)), []
    for name, folder in LAYOUTS[config.coco.layout]["train" if split == "seen" else split]:
        path = root / "annotations" / name
        for place in (path, root / folder):
            if not place.exists():
                raise FileNotFoundError(
                    f"data.root={root}: {place} does not exist; data.coco.layout={config.coco.layout} expects "
                    f"{root}/annotations/{name} and the pictures in {root}/{folder}"
                )
        parts.append(Part(load_coco(path), root / folder))
    fraction = 1.0 if split == "val" else config.fraction
    return CocoDataset(
        parts, config.coco, config.augment.flip, split == "train", needs_masks, config.max_pixels, split, fraction
    )
