"""Sources without files: the embedded digits and generated pictures."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from drconv.config import DataConfig
from drconv.data.hashing import hash_integers, hash_range, permutation
from drconv.data.source import Source
from drconv.errors import DataError
from drconv.interfaces import Fingerprint
from drconv.tasks.classification.transforms import INTERPOLATIONS

_DIGITS_VAL_PER_CLASS = 36  # of 174 to 183, so 20 %
_DIGITS_KEY = 1998


@dataclass(frozen=True)
class TensorSource:
    """Pictures that fit into memory.

    Attributes:
        name: for messages.
        classes: names of the classes.
        labels: integers (N,).
        pictures: uint8 (N, 1 or 3, H, W).
    """

    name: str
    classes: list[str]
    labels: Tensor
    pictures: Tensor

    def read(self, position: int) -> Tensor:
        return self.pictures[position].expand(3, -1, -1)

    def fingerprint(self) -> Fingerprint:
        digest = hashlib.sha256(self.pictures.numpy().tobytes() + self.labels.long().numpy().tobytes())
        return {"files": len(self.labels), "classes": len(self.classes), "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class GeneratedSource:
    """Coloured noise over a pattern of the class: for tests and dry runs, made on the fly from the position alone.

    Attributes:
        split: train or val; they share the patterns and differ in the noise.
        num_pictures: length.
        num_classes: labels go round.
        size: side of a picture in pixels.
    """

    split: str
    num_pictures: int
    num_classes: int
    size: int

    @property
    def name(self) -> str:
        return f"generated ({self.split})"

    @property
    def classes(self) -> list[str]:
        return [f"class{number}" for number in range(self.num_classes)]

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.num_pictures) % self.num_classes

    def read(self, position: int) -> Tensor:
        pattern = _noise(hash_integers(0, position % self.num_classes))
        noise = _noise(hash_integers(1, int(self.split == "train"), position))
        picture = (pattern.to(torch.int16) + noise).div_(2, rounding_mode="floor").to(torch.uint8)
        return F.resize(picture, [self.size, self.size], antialias=True)

    def fingerprint(self) -> Fingerprint:
        digest = hashlib.sha256(repr(self).encode())
        return {"files": self.num_pictures, "classes": self.num_classes, "sha256": digest.hexdigest()}


class DecodedSource:
    """Another source whose pictures, all of one size, are decoded once and stay in memory (``data.in_memory``).

    A network that takes a third of a millisecond a picture would wait longer for JPEG than for itself.

    Raises:
        DataError: two pictures differ in size, or one does not decode.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.classes, self.labels, self.fingerprint = (
            source.name,
            source.classes,
            source.labels,
            source.fingerprint,
        )
        first = source.read(0)
        self.pictures = torch.empty(len(source.labels), *first.shape, dtype=torch.uint8)
        for position in range(len(source.labels)):
            picture = source.read(position)
            if picture.shape != first.shape:
                raise DataError(
                    f"picture {position} of {source.name} has {tuple(picture.shape[1:])} pixels, the first "
                    f"{tuple(first.shape[1:])}; data.in_memory=true needs one size, leave it off"
                )
            self.pictures[position] = picture

    def read(self, position: int) -> Tensor:
        return self.pictures[position]


def load_digits(split: str, config: DataConfig) -> TensorSource:
    """The 1,797 handwritten digits of 8x8 pixels, enlarged once to squares of ``data.eval_resize``.

    From every class the same 36 pictures are kept for validation whatever the seed (360 of 1,797). Origin: E. Alpaydin
    and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998, CC BY 4.0; the
    1,797 test pictures, in scikit-learn's order.
    """
    with np.load(str(files("drconv.data") / "digits.npz")) as stored:
        pictures, labels = torch.from_numpy(stored["pictures"]), torch.from_numpy(stored["labels"])
    order = torch.from_numpy(permutation(_DIGITS_KEY, len(labels)))
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        held_out[order[labels[order] == digit][:_DIGITS_VAL_PER_CLASS]] = True
    kept = held_out if split == "val" else ~held_out
    # 16 grey levels become 0..255; the enlarging happens here and not for each sample.
    levels = (pictures[kept].float() * (255 / 16)).round_().to(torch.uint8).unsqueeze(1)
    size = [config.eval_resize, config.eval_resize]
    enlarged = F.resize(levels, size, interpolation=INTERPOLATIONS[config.interpolation], antialias=True)
    return TensorSource(f"embedded digits ({split})", [str(digit) for digit in range(10)], labels[kept], enlarged)


def _noise(key: int) -> Tensor:
    """Random uint8 (3, 8, 8)."""
    return torch.from_numpy(hash_range(key, 24).view(np.uint8).copy()).view(3, 8, 8)
