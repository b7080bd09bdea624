"""From the configuration to the training set and the evaluation sets of faces."""

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2 import functional as F

from drconv.config import DataConfig
from drconv.data.index import visible_entries
from drconv.data.source import FileSource, Source, class_folders
from drconv.errors import ConfigError, DataError
from drconv.files import file_hash
from drconv.interfaces import Batch, Facts, Fingerprint, Sample, SampleKey
from drconv.tasks.identification.pairs import read_pairs
from drconv.tasks.identification.pictures import SIZE, DrawnSource, RecordSource, decode_face, fit_face, hold_out

TEST_IDENTITIES, DISTRACTORS = 10**6, 2 * 10**6  # first drawn identity of each


class Faces(ABC):
    """What all sets of faces share: samples ``image`` uint8 (3, 112, 96) RGB, ``label``, ``index``.

    Args:
        labels: integers (N,).
        name: where the pictures come from, for messages.
        config: the ``data`` section.
        num_classes: identities to learn, or None.
    """

    def __init__(self, labels: Tensor, name: str, config: DataConfig, num_classes: int | None = None) -> None:
        self.labels, self.name = labels, name
        self.window = config.faces.window
        self.facts = Facts(num_classes, SIZE)

    @abstractmethod
    def read(self, position: int) -> Tensor:
        """A picture, uint8 RGB (3, H, W)."""

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""

    @abstractmethod
    def fingerprint(self) -> Fingerprint: ...

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: SampleKey) -> Sample:
        index, seed = key
        picture = fit_face(self.read(index), self.window, f"picture {index} of {self.name}")
        image = self.augment(picture, seed).contiguous()
        return {"image": image, "label": int(self.labels[index]), "index": index}

    def augment(self, image: Tensor, seed: int) -> Tensor:
        return image

    def collate(self, samples: list[Sample]) -> Batch:
        return default_collate(samples)


class TrainFaces(Faces):
    """Faces with the number of their identity; mirrored with ``augment.flip``, shifted with ``augment.crop=pad``."""

    def __init__(self, source: Source, config: DataConfig) -> None:
        super().__init__(source.labels, source.name, config, len(source.classes))
        self.source = source
        self.flip = config.augment.flip
        self.padding = config.augment.crop_padding if config.augment.crop == "pad" else 0

    def read(self, position: int) -> Tensor:
        return self.source.read(position)

    def augment(self, image: Tensor, seed: int) -> Tensor:
        random = Random(seed)
        if self.padding:
            padded = F.pad(image, [self.padding], padding_mode="edge")
            top, left = (random.randint(0, 2 * self.padding) for _ in range(2))
            image = padded[:, top : top + SIZE[0], left : left + SIZE[1]]
        return image.flip(-1) if random.random() < self.flip else image

    def describe(self) -> str:
        return f"{self.name}: {len(self):,} faces of {self.facts.num_outputs:,} identities"

    def fingerprint(self) -> Fingerprint:
        return {**self.source.fingerprint(), "pictures": len(self)}


class Gallery(Faces):
    """Probes, then distractors; the label of a distractor is -1."""

    def __init__(self, probes: Source, distractors: Source, config: DataConfig) -> None:
        labels = torch.cat([probes.labels.long(), torch.full((len(distractors.labels),), -1)])
        super().__init__(labels, f"{probes.name} and {distractors.name}", config)
        both = len(set(probes.classes) & set(distractors.classes)) if not isinstance(probes, DrawnSource) else 0
        if both:
            raise DataError(
                f"{both} identities stand among the probes ({probes.name}) and the distractors ({distractors.name}); "
                f"remove them from one"
            )
        self.probes, self.distractors = probes, distractors
        self.num_probes = len(probes.labels)
        if not (torch.bincount(probes.labels.long()) > 1).any():
            raise DataError(f"no identity of {probes.name} has two pictures, so there is no pair of probe and mate")

    def read(self, position: int) -> Tensor:
        if position < self.num_probes:
            return self.probes.read(position)
        return self.distractors.read(position - self.num_probes)

    @property
    def identities(self) -> NDArray[np.int64]:
        return self.labels[: self.num_probes].numpy()

    def describe(self) -> str:
        return (
            f"{self.num_probes:,} probes of {len(self.probes.classes):,} identities ({self.probes.name}) among "
            f"{len(self) - self.num_probes:,} distractors ({self.distractors.name})"
        )

    def fingerprint(self) -> Fingerprint:
        return {"probes": self.probes.fingerprint(), "distractors": self.distractors.fingerprint()}


class Pairs(Faces):
    """A verification set; its pictures stay encoded until they are used."""

    def __init__(self, path: Path, config: DataConfig) -> None:
        self.path = path
        self.pictures, self.same = read_pairs(path)
        super().__init__(torch.from_numpy(self.same).repeat_interleave(2), str(path), config)

    def read(self, position: int) -> Tensor:
        return decode_face(
            self.pictures[position], f"picture {position % 2 + 1} of pair {position // 2} of {self.path}"
        )

    def describe(self) -> str:
        return f"{len(self.same):,} pairs ({self.path})"

    def fingerprint(self) -> Fingerprint:
        return {"pairs": len(self.same), "sha256": file_hash(self.path)}


def train_faces(config: DataConfig) -> TrainFaces:
    """The training set of ``data.name``.

    Raises:
        ConfigError: a set without identities, an augmentation or a treatment of broken pictures that faces have not.
        DataError, FileNotFoundError: as the readers say.
    """
    if config.augment.crop not in ("none", "pad"):
        raise ConfigError(f"data.augment.crop={config.augment.crop} would cut aligned faces; use none or pad")
    if config.broken != "error":
        raise ConfigError(f"data.broken={config.broken}: faces know error alone; remove the pictures that are named")
    return TrainFaces(_train_source(config), config)


def evaluation_faces(config: DataConfig) -> dict[str, Faces]:
    """``gallery``, where there are probes, and each verification set by its file's name.

    Raises:
        ConfigError: there is neither.
    """
    sets: dict[str, Faces] = {}
    probes = _probes(config)
    if probes is not None:
        distractors = _distractors(config)
        sets["gallery"] = Gallery(probes, distractors, config)
        if config.name == "face_folders" and not config.faces.held_out:
            _check_not_trained_on(config, probes)
    for name in config.faces.verification:
        sets[name] = Pairs(Path(str(config.root)) / f"{name}.bin", config)
    if not sets:
        raise ConfigError(
            "nothing to evaluate on: set data.faces.probes and data.faces.distractors, or data.faces.verification "
            "(with experiment.metric=lfw/accuracy)"
        )
    return sets


def _train_source(config: DataConfig) -> Source:
    faces = config.faces
    if config.name == "generated_faces":
        return DrawnSource("drawn faces", 0, faces.identities, faces.each)
    if config.name == "ms1mv2":
        return RecordSource(Path(str(config.root)) / "train.rec")
    if config.name == "face_folders":
        source = FileSource(class_folders(_below(config, config.train_split)))
        return hold_out(source, faces.held_out)[0] if faces.held_out else source
    raise ConfigError(f"data.name={config.name} has no identities; use generated_faces, face_folders or ms1mv2")


def _probes(config: DataConfig) -> Source | None:
    faces = config.faces
    if config.name == "generated_faces":
        return DrawnSource("drawn faces", TEST_IDENTITIES, faces.identities // 4, 4)
    if faces.probes is not None:
        return FileSource(class_folders(_below(config, faces.probes)))
    if faces.held_out:
        return hold_out(FileSource(class_folders(_below(config, config.train_split))), faces.held_out)[1]
    return None


def _distractors(config: DataConfig) -> Source:
    faces = config.faces
    if config.name == "generated_faces":
        return DrawnSource("drawn faces", DISTRACTORS, 5 * faces.identities, 1)
    if faces.distractors is None:
        raise ConfigError("probes need distractors: set data.faces.distractors to a folder below data.root")
    return FileSource(class_folders(_below(config, faces.distractors)))


def _check_not_trained_on(config: DataConfig, probes: Source) -> None:
    """Rank-1 of people who were trained on is another figure. By names of folders; the training set need not be there,
    as in eval.py."""
    folder = Path(str(config.root)) / config.train_split
    trained = {entry.name for entry in visible_entries(folder) if entry.is_dir()} if folder.is_dir() else set()
    both = sorted(trained & set(probes.classes))
    if both:
        raise DataError(
            f"{len(both)} identities stand in the training set ({folder}) and among the probes ({probes.name}), such "
            f"as {both[0]}; remove them from one"
        )


def _below(config: DataConfig, name: str) -> Path:
    folder = Path(str(config.root)) / name
    if not folder.is_dir():
        raise FileNotFoundError(f"the folder {folder} does not exist; expected {folder}/<identity>/<picture>.jpg")
    return folder
