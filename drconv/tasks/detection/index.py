"""Annotations as flat arrays in one file that is mapped, not read: loader processes and ranks share its pages.

As Python objects the annotations of train2017 would be copied bit by bit into every loader process, because reading an
object writes its reference count.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from drconv.files import file_hash, one_at_a_time, replace_file
from drconv.tasks.detection.annotations import Contents, clip_box, read_annotations

logger = logging.getLogger(__name__)

_VERSION = "1"


@dataclass(frozen=True)
class Texts:
    """Strings of bytes one after the other: uint8 (total,), and where each ends, int64 (N,)."""

    data: Tensor
    ends: Tensor

    def __getitem__(self, position: int) -> bytes:
        first = int(self.ends[position - 1]) if position else 0
        return self.data[first : int(self.ends[position])].numpy().tobytes()

    @staticmethod
    def pack(texts: Iterable[bytes]) -> "Texts":
        texts = list(texts)
        ends = torch.tensor([len(text) for text in texts], dtype=torch.int64).cumsum(0)
        return Texts(torch.frombuffer(bytearray(b"".join(texts)) or bytearray(1), dtype=torch.uint8), ends)


@dataclass(frozen=True)
class CocoIndex:
    """The pictures and annotations of one file, annotations in the order of their pictures.

    Attributes:
        path: the annotation file.
        digest: its sha256.
        categories: id and name, sorted by id; label L is the category L - 1.
        findings: one line for each kind of oddity.
        keys: the pictures' ids as JSON.
        names: their file names.
        sizes: int32 (N, 2), rows and columns.
        ends: int64 (N,), where each picture's annotations end.
        labels: int16 (A,), from 1.
        boxes: float64 (A, 4), x, y, width, height as in the file.
        areas: float64 (A,).
        crowd: bool (A,).
        trained: bool (A,), see ``Annotation``.
        masks: compressed runs, empty without a mask.
    """

    path: Path
    digest: str
    categories: list[tuple[int, str]]
    findings: list[str]
    keys: Texts
    names: Texts
    sizes: Tensor
    ends: Tensor
    labels: Tensor
    boxes: Tensor
    areas: Tensor
    crowd: Tensor
    trained: Tensor
    masks: Texts

    def __len__(self) -> int:
        return len(self.ends)

    def is_whole(self) -> bool:
        """Whether its parts fit together, as those of a file that was damaged may not."""
        pictures, annotations = len(self.ends), len(self.labels)
        of_pictures = (self.keys.ends, self.names.ends, self.sizes)
        of_annotations = (self.boxes, self.areas, self.crowd, self.trained, self.masks.ends)
        return (
            all(len(part) == pictures for part in of_pictures)
            and all(len(part) == annotations for part in of_annotations)
            and (int(self.ends[-1]) if pictures else 0) == annotations
            and bool(((self.labels > 0) & (self.labels <= len(self.categories))).all())
        )

    def key(self, position: int) -> int | str:
        """The picture's id, in the type of the file."""
        return json.loads(self.keys[position])

    def name(self, position: int) -> str:
        return os.fsdecode(self.names[position])

    def size(self, position: int) -> tuple[int, int]:
        rows, columns = self.sizes[position].tolist()
        return rows, columns

    def annotations(self, position: int) -> range:
        """The picture's annotations."""
        return range(int(self.ends[position - 1]) if position else 0, int(self.ends[position]))

    def corners(self, annotations: list[int], position: int) -> Tensor:
        """x1, y1, x2, y2 within the picture, float32 (n, 4)."""
        size = self.size(position)
        corners = [clip_box(tuple(self.boxes[i].tolist()), size) for i in annotations]
        return torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)


def load_coco(path: Path) -> CocoIndex:
    """The index of an annotation file: the stored one, or a fresh one that is stored for the next time.

    Raises:
        DataError: see ``read_annotations``.
    """
    stored = _cache_file(path)
    if (index := _open(stored, path)) is not None:
        return index
    with one_at_a_time(stored.with_suffix(".lock")):  # one rank makes the index, the others wait for it
        return _open(stored, path) or _make(path, stored)


def cache_folder() -> Path:
    """Where indexes and embedded pictures lie: ``DRCONV_CACHE``, or ``~/.cache/drconv``."""
    folder = Path(os.environ.get("DRCONV_CACHE") or Path.home() / ".cache" / "drconv")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def index_contents(path: Path, digest: str, contents: Contents) -> CocoIndex:
    """Packs a file that was read; annotations keep their order within a picture."""
    annotations = sorted(contents.annotations, key=lambda annotation: annotation.picture)
    counts = np.bincount([a.picture for a in annotations], minlength=len(contents.pictures))
    return CocoIndex(
        path,
        digest,
        contents.categories,
        contents.findings.lines(),
        Texts.pack(json.dumps(picture.key).encode() for picture in contents.pictures),
        Texts.pack(os.fsencode(picture.name) for picture in contents.pictures),
        torch.tensor([picture.size for picture in contents.pictures], dtype=torch.int32).reshape(-1, 2),
        torch.from_numpy(counts.astype(np.int64)).cumsum(0),
        torch.tensor([a.label for a in annotations], dtype=torch.int16),
        torch.tensor([a.box for a in annotations], dtype=torch.float64).reshape(-1, 4),
        torch.tensor([a.area for a in annotations], dtype=torch.float64),
        torch.tensor([a.is_crowd for a in annotations], dtype=torch.bool),
        torch.tensor([a.is_trained for a in annotations], dtype=torch.bool),
        Texts.pack(a.mask for a in annotations),
    )


def _make(path: Path, stored: Path) -> CocoIndex:
    logger.info("indexing %s, once", path)
    index = index_contents(path, file_hash(path), read_annotations(path))
    tensors = {name: value for name, value in vars(index).items() if isinstance(value, Tensor)}
    for name, value in vars(index).items():
        if isinstance(value, Texts):
            tensors |= {f"{name}.data": value.data, f"{name}.ends": value.ends}
    header = {"digest": index.digest, "categories": index.categories, "findings": index.findings}
    metadata = {"version": _VERSION, "stamp": _stamp(path), "header": json.dumps(header)}
    replace_file(stored, save(tensors, metadata=metadata))
    return index


def _open(stored: Path, path: Path) -> CocoIndex | None:
    """The stored index, mapped; None where there is none, or the file has changed since."""
    if not stored.exists():
        return None
    try:
        with safe_open(stored, framework="pt") as file:
            metadata = file.metadata()
            if metadata["version"] != _VERSION or metadata["stamp"] != _stamp(path):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except (SafetensorError, OSError, KeyError, TypeError) as error:
        logger.warning("%s is damaged and is made again (%s)", stored, error)
        return None
    header = json.loads(metadata["header"])
    texts: dict[str, Any] = {
        name: Texts(tensors.pop(f"{name}.data"), tensors.pop(f"{name}.ends")) for name in ("keys", "names", "masks")
    }
    categories = [(key, name) for key, name in header["categories"]]
    fields: dict[str, Any] = {**texts, **tensors}
    index = CocoIndex(path, header["digest"], categories, header["findings"], **fields)
    if not index.is_whole():
        logger.warning("%s is damaged and is made again (its parts do not fit together)", stored)
        return None
    return index


def _cache_file(path: Path) -> Path:
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / f"coco-{path.stem}-{name}.safetensors"


def _stamp(path: Path) -> str:
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns}"
