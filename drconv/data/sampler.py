"""Which samples a step sees: pure functions of (seed, step), so that a run can restart at any step on any ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drconv.data.hashing import hash_integers, permutation
from drconv.interfaces import SampleKey

_ORDER, _SAMPLE = 0, 1


def epoch_order(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which an epoch visits the samples."""
    return permutation(hash_integers(_ORDER, seed, epoch), num_samples)


def gather_groups(order: NDArray[np.int64], groups: NDArray[np.int64], size: int, start: int) -> NDArray[np.int64]:
    """Changes an order so that ``size`` neighbours belong to one group, wherever enough of the group are left.

    Neighbours are the positions from one multiple of ``size`` to the next, counted from the run's first sample, so that
    the micro-batches of a step that are multiples of ``size`` hold whole neighbourhoods on any number of ranks.

    Args:
        order: of an epoch, (N,).
        groups: group of every sample (N,), by index.
        size: of a neighbourhood.
        start: position of the epoch's first sample in the run.
    """
    waiting: dict[int, list[int]] = {}
    whole: list[list[int]] = []
    for index in order.tolist():
        row = waiting.setdefault(int(groups[index]), [])
        row.append(index)
        if len(row) == size:
            whole.append(row.copy())
            row.clear()
    rest = [index for row in waiting.values() for index in row]
    lead = min(-start % size, len(order))  # what is missing to the next multiple
    while len(rest) < lead:
        rest += whole.pop()
    return np.array([*rest[:lead], *(index for row in whole for index in row), *rest[lead:]], dtype=np.int64)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The seed of all randomness of one sample in one epoch."""
    return hash_integers(_SAMPLE, seed, epoch, index)


@dataclass(frozen=True)
class TrainSampler:
    """Micro-batches of ``(index, sample seed)`` for one rank.

    Step ``s`` uses the positions ``[s * batch_size, (s + 1) * batch_size)`` of the endless concatenation of
    the epochs, so no sample is ever dropped. A step is cut into ``world_size * accumulate`` equal pieces in
    order; rank ``r`` takes the ``accumulate`` pieces from ``r * accumulate`` on. The pieces are therefore the
    same for one rank with four micro-batches as for four ranks with one.

    Args:
        num_samples: length of the data set.
        batch_size: samples of a step over all ranks and micro-batches.
        accumulate: micro-batches of a step on each rank.
        seed: decides the order and the samples' seeds.
        start_step: the first step that is produced.
        num_steps: the length of the whole run; the last step that is produced is ``num_steps - 1``.
        rank: this process.
        world_size: number of processes.
        groups: group of every sample, for batches of like samples (the aspect ratio of pictures); None for one group.
        group_size: how many samples of one group stand together.

    Raises:
        ValueError: there are no samples, or the batch cannot be cut into equal pieces.
    """

    num_samples: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    start_step: int = 0
    num_steps: int = 1
    rank: int = 0
    world_size: int = 1
    groups: NDArray[np.int64] | None = None
    group_size: int = 1

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError("the training set has no pictures; check data.root, data.holdout and data.fraction")
        if self.batch_size < 1 or self.batch_size % self._num_pieces:
            raise ValueError(
                f"recipe.batch_size={self.batch_size} counts all devices and must be a positive multiple of "
                f"devices x accumulate = {self.world_size} x {self.accumulate}"
            )

    def __len__(self) -> int:
        return max(0, self.num_steps - self.start_step) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        size = self.batch_size // self._num_pieces
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.num_steps):
            for piece in range(self.rank * self.accumulate, (self.rank + 1) * self.accumulate):
                first = step * self.batch_size + piece * size
                batch = []
                for position in range(first, first + size):
                    needed, offset = divmod(position, self.num_samples)
                    if needed != epoch:
                        epoch, order = needed, self._order(needed)
                    index = int(order[offset])
                    batch.append((index, sample_seed(self.seed, epoch, index)))
                yield batch

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = epoch_order(self.num_samples, self.seed, epoch)
        if self.groups is None or self.group_size == 1:
            return order
        return gather_groups(order, self.groups, self.group_size, epoch * self.num_samples)

    @property
    def _num_pieces(self) -> int:
        return self.world_size * self.accumulate


@dataclass(frozen=True)
class EvalSampler:
    """Batches of ``(index, 0)`` that visit every ``world_size``-th sample: exact, in order, without padding.

    The number of batches can differ between ranks, so a loop over them must not contain a collective.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __len__(self) -> int:
        return -(-len(self._indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        indices = self._indices
        for start in range(0, len(indices), self.batch_size):
            yield [(index, 0) for index in indices[start : start + self.batch_size]]

    @property
    def _indices(self) -> range:
        return range(self.rank, self.num_samples, self.world_size)
