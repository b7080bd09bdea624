"""Pictures of faces: from folders, RecordIO or drawn, as uint8 (3, 112, 96)."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from drconv.data.decode import MAX_PIXELS, as_rgb
from drconv.data.hashing import hash_integers, hash_range
from drconv.data.source import Source
from drconv.errors import DataError
from drconv.interfaces import Fingerprint
from drconv.tasks.identification.drawn import draw_face
from drconv.tasks.identification.recordio import RecordReader, unpack_payload
from drconv.tasks.identification.records import number_of_classes, open_faces

SIZE = (112, 96)  # rows, columns
_MARGIN = 8  # columns that a 112x112 face has more on each side


def fit_face(picture: Tensor, window: list[int] | None, name: str) -> Tensor:
    """A face of 112x96 from a picture (3, H, W) uint8.

    112x96 stays as it is; of 112x112, whose template is the same with x + 8, the columns 8 to 103 are taken; of others
    the central ``window`` (rows, columns), or the largest of its proportions that fits, is resized.

    Raises:
        DataError: another size, and no window.
    """
    rows, columns = picture.shape[1:]
    if window is not None:
        share = min(1.0, rows / window[0], columns / window[1])
        cut = F.center_crop(picture, [max(1, round(side * share)) for side in window])
        return F.resize(cut, list(SIZE), antialias=True)
    if (rows, columns) == SIZE:
        return picture
    if (rows, columns) == (112, 112):
        return picture[:, :, _MARGIN : _MARGIN + SIZE[1]]
    raise DataError(
        f"{name} has {rows}x{columns} pixels, and faces are 112x112 or 112x96; align them (scripts/data.py align) or "
        f"set data.faces.window=[rows,columns] to the central part that shows the face"
    )


def decode_face(data: bytes, name: str) -> Tensor:
    """JPEG or PNG bytes to uint8 RGB (3, H, W).

    Raises:
        DataError: they are neither, damaged, or a picture of more than ``MAX_PIXELS``.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width}x{picture.height} pixels")
            pixels = as_rgb(picture)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"cannot decode {name} ({reason}); repair or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


class RecordSource:
    """The pictures of a RecordIO file, read by every process for itself.

    Where they lie is held in tensors, which spawned loader processes share; arrays would be copied into each: 116 MB
    for 5.8 million pictures.
    """

    def __init__(self, path: Path) -> None:
        index = open_faces(path)
        self.path = path
        self.reader = RecordReader(path)
        self.name = f"{path} ({index.identities:,} identity records and {index.headers} header left out)"
        self.classes = [str(number) for number in range(number_of_classes(path, index.labels))]
        self.labels, self._keys, self._offsets = map(torch.from_numpy, (index.labels, index.keys, index.offsets))
        self._fingerprint: Fingerprint = index.fingerprint()

    def read(self, position: int) -> Tensor:
        offset = int(self._offsets[position])
        where = f"key {int(self._keys[position])} at offset {offset} of {self.path}"
        return decode_face(unpack_payload(self.reader.read(offset)).picture, where)

    def fingerprint(self) -> Fingerprint:
        return self._fingerprint


@dataclass(frozen=True)
class DrawnSource:
    """Drawn faces; ``first`` separates the identities of one source from those of another."""

    name: str
    first: int
    identities: int
    each: int

    @property
    def classes(self) -> list[str]:
        return [str(number) for number in range(self.identities)]

    @property
    def labels(self) -> Tensor:
        return torch.arange(self.identities * self.each) // self.each

    def read(self, position: int) -> Tensor:
        identity, number = divmod(position, self.each)
        return torch.from_numpy(draw_face(self.first + identity, number)).permute(2, 0, 1)

    def fingerprint(self) -> Fingerprint:
        return {"files": self.identities * self.each, "classes": self.identities, "drawn_from": self.first}


class SomeClasses:
    """Some classes of a source, renumbered in their order."""

    def __init__(self, source: Source, chosen: Tensor) -> None:
        self.source = source
        numbers = torch.cumsum(chosen.long(), 0) - 1
        self.positions = chosen[source.labels.long()].nonzero().flatten()
        self.labels = numbers[source.labels.long()[self.positions]]
        self.classes = [name for name, keep in zip(source.classes, chosen.tolist(), strict=True) if keep]

    @property
    def name(self) -> str:
        return f"{len(self.classes)} of the identities in {self.source.name}"

    def read(self, position: int) -> Tensor:
        return self.source.read(int(self.positions[position]))

    def fingerprint(self) -> Fingerprint:
        return {**self.source.fingerprint(), "pictures": len(self.labels), "identities": len(self.classes)}


def hold_out(source: Source, share: float) -> tuple[SomeClasses, SomeClasses]:
    """Splits by identity, the same for every seed: those to train on, and a share of the classes to test with."""
    count = len(source.classes)
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.from_numpy(np.argsort(hash_range(hash_integers(2009), count)))[: round(count * share)]] = True
    return SomeClasses(source, ~held), SomeClasses(source, held)
