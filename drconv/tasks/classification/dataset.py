"""The data set of classification: a source, the positions that are used, and a transform."""

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from drconv.data.hashing import hash_range
from drconv.data.source import Source
from drconv.errors import DataError, printable
from drconv.interfaces import Batch, Facts, Fingerprint, Sample, SampleKey

logger = logging.getLogger(__name__)

Transform = Callable[[Sample, int], Sample]


class PictureDataset:
    """Transformed pictures, looked up by ``(index, seed)``.

    Args:
        source: the pictures.
        transform: maps a sample whose ``image`` is uint8 (3, H, W), and a seed, to one with uint8 (3, S, S).
        size: S, pixels.
        positions: int64, the positions of the source that are used, or None for all.
        skip_broken: whether a picture that does not decode is replaced by the next one and marked, or is an
            error.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform,
        size: int,
        positions: Tensor | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.source = source
        self.transform = transform
        self.size = size
        self.positions = positions
        self.skip_broken = skip_broken
        self._outputs = list(range(len(source.classes)))  # label of each class

    @property
    def classes(self) -> list[str]:
        return self.source.classes

    @property
    def labels(self) -> Tensor:
        """Label of every sample (N,)."""
        return self.source.labels if self.positions is None else self.source.labels[self.positions]

    def __len__(self) -> int:
        return len(self.source.labels) if self.positions is None else len(self.positions)

    def __getitem__(self, key: SampleKey) -> Sample:
        """One sample.

        Args:
            key: the index, and the seed from which all of the sample's randomness comes.

        Returns:
            image uint8 (3, S, S) RGB, label, index, and valid: False for the replacement of a broken picture.

        Raises:
            DataError: the picture does not decode, and broken pictures are not skipped.
        """
        index, seed = key
        for shift in range(len(self)):
            position = self._position((index + shift) % len(self))
            try:
                picture = self.source.read(position)
            except DataError as error:
                if not self.skip_broken:
                    raise DataError(f"{error}, or set data.broken=skip") from None
                logger.warning("skipped: %s", str(error).rpartition("; ")[0])  # the rest says to mend it
                continue
            label = self._outputs[int(self.source.labels[position])]
            return self.transform({"image": picture, "label": label, "index": index, "valid": shift == 0}, seed)
        raise DataError(f"none of the {len(self)} pictures of {self.source.name} decodes; check data.root")

    def collate(self, samples: list[Sample]) -> Batch:
        return default_collate(samples)

    @property
    def facts(self) -> Facts:
        return Facts(len(self.classes), (self.size, self.size), self.classes)

    def relabel(self, names: list[str]) -> None:
        """Labels become positions in a list of names that has all classes."""
        positions = {name: position for position, name in enumerate(names)}
        self._outputs = [positions[name] for name in self.classes]

    def fingerprint(self) -> Fingerprint:
        """Number of pictures used, files and classes, and a hash over names and sizes."""
        return {"pictures": len(self), **self.source.fingerprint()}

    def describe(self) -> str:
        """One line for the log."""
        return f"{printable(self.source.name)}: {len(self):,} pictures, {len(self.classes):,} classes"

    def _position(self, index: int) -> int:
        return index if self.positions is None else int(self.positions[index])


def balanced_choice(labels: Tensor, share: float, key: int) -> Tensor:
    """Choose a share of every class at random; the choice depends on nothing but the labels and the key.

    A larger share contains the smaller one.

    Args:
        labels: integers (N,).
        share: from 0 to 1; rounded to whole pictures in each class.
        key: of the random choice.

    Returns:
        bool (N,), True for the chosen.
    """
    classes: NDArray[np.int64] = labels.long().numpy()
    order = np.lexsort((hash_range(key, len(classes)), classes))
    counts = np.bincount(classes)
    firsts = np.cumsum(counts) - counts
    rank = np.empty(len(classes), dtype=np.int64)
    rank[order] = np.arange(len(classes)) - firsts[classes[order]]
    return torch.from_numpy(rank < np.rint(counts * share).astype(np.int64)[classes])
