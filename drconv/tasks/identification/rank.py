"""Rank-1 identification among distractors (MegaFace Challenge 1), exact, in bounded memory.

A trial is an ordered pair (probe, mate) of two pictures of one identity: the mate is put among the distractors, and the
trial is a hit if it is nearer to the probe than every distractor. An identity with M pictures gives M (M - 1) trials. A
distractor as near as the mate is a miss.

The work is one matrix product. It is done in float32 over groups of distractors, of which only the largest score for
each probe is kept. Rounding moves a score of unit vectors by at most D * 2**-24, so the true best is in a group whose
maximum is within twice that of the largest; those few groups are scored again in float64, and so are the mates, by the
same sum. What is compared is therefore exact, whatever the sizes of the blocks: a copy of a mate ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from drconv import distributed
from drconv.errors import DataError

Floats = NDArray[np.float32]
_LEAST_GROUP = 64
_BLOCK = 1 << 16  # rows that are normalised at once


@dataclass(frozen=True)
class RankResult:
    """Hits of all trials.

    Attributes:
        trials: ordered pairs of one identity.
        hits: of them, for each number of distractors in ``sizes``.
        sizes: numbers of distractors.
        single: identities with one picture, which give no trial.
    """

    trials: int
    hits: list[int]
    sizes: list[int]
    single: int

    @property
    def rank1(self) -> float:
        """Percent of hits with all distractors."""
        return 100 * self.hits[-1] / self.trials

    def by_size(self) -> dict[int, float]:
        """Percent of hits for each number of distractors."""
        return {size: 100 * hits / self.trials for size, hits in zip(self.sizes, self.hits, strict=True)}


def rank1(
    probes: Floats,
    identities: NDArray[np.int64],
    distractors: Floats,
    sizes: Sequence[int] | None = None,
    positions: NDArray[np.int64] | None = None,
    memory_mib: int = 64,
) -> RankResult:
    """Rank-1 of probes against distractors; the same on every rank, each of which passes its own distractors.

    Args:
        probes: unit rows (P, D) float32, the same on every rank.
        identities: of the probes (P,).
        distractors: unit rows (N, D) float32 of this rank; may be a memory map, since it is read in blocks.
        sizes: ascending numbers of distractors to report; the first so many of the list are used. None for all.
        positions: ascending places (N,) of this rank's distractors in the whole list; None for 0..N-1.
        memory_mib: bound on the scores that are held at once.

    Raises:
        DataError: rows that are not finite or not of unit length, other lengths of rows, no trial, or no distractor.
    """
    check_unit(probes, "probes")
    if distractors.ndim != 2 or distractors.shape[1] != probes.shape[1]:
        raise DataError(
            f"probes have {probes.shape[1]} features, distractors {distractors.shape[1]}; extract both with one network"
        )
    own = np.arange(len(distractors)) if positions is None else positions
    total = torch.tensor(int(own[-1]) + 1 if len(own) else 0)
    wanted = list(sizes) if sizes is not None else [int(distributed.all_reduce(total, "max"))]
    if wanted[-1] == 0:
        raise DataError("there is no distractor, and rank-1 among none is 100 % whatever the network; add some")
    ends = np.searchsorted(own, wanted, side="left").tolist()
    best = distributed.all_reduce(torch.from_numpy(best_scores(probes, distractors, ends, memory_mib)), "max").numpy()
    return _count(probes, identities, best, wanted)


def check_unit(rows: NDArray[np.floating], name: str, first: int = 0) -> None:
    """Refuses rows that are not finite or whose length is not 1.

    Raises:
        DataError: the message has the row, counted from ``first``, or the range of lengths.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    bad = ~np.isfinite(lengths)
    if bad.any():
        raise DataError(f"{name}: row {first + int(np.argmax(bad))} is not finite; extract it again")
    if len(lengths) and np.abs(lengths - 1).max() > 1e-3:
        raise DataError(
            f"{name}: rows must have length 1, found {lengths.min():.3g} to {lengths.max():.3g}; normalise them first"
        )


def normalise(features: NDArray[np.floating], name: str = "features") -> Floats:
    """Rows of length 1 in float32; equal rows stay equal whatever stands beside them.

    Raises:
        DataError: a row is zero or not finite: zero rows would score 0 against everything.
    """
    result = np.empty(features.shape, np.float32)
    for start in range(0, len(features), _BLOCK):
        wide = np.array(features[start : start + _BLOCK], dtype=np.float64)
        lengths = np.sqrt((wide * wide).sum(1))
        bad = ~(np.isfinite(lengths) & (lengths > 0))
        if bad.any():
            raise DataError(f"{name}: row {start + int(np.argmax(bad))} is zero or not finite; extract it again")
        result[start : start + _BLOCK] = wide / lengths[:, None]
    return result


def dot(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Scores of pairs of rows, summed in float64 in the order of the features alone."""
    return (a.astype(np.float64) * b.astype(np.float64)).sum(-1)


def best_scores(probes: Floats, distractors: Floats, ends: Sequence[int], memory_mib: int = 64) -> NDArray[np.float64]:
    """Best float64 score of each probe among the first ``ends[i]`` distractors, (len(ends), P); -inf among none."""
    best = np.full((len(ends), len(probes)), -np.inf)
    begin, running = 0, np.full(len(probes), -np.inf)
    for number, end in enumerate(ends):
        running = np.maximum(running, _best_of(probes, distractors[begin:end], begin, memory_mib))
        best[number] = running
        begin = max(begin, end)
    return best


def _best_of(probes: Floats, distractors: Floats, first: int, memory_mib: int) -> NDArray[np.float64]:
    best = np.full(len(probes), -np.inf)
    if len(distractors) == 0 or len(probes) == 0:
        return best
    group = _group(len(probes), len(distractors), memory_mib)
    maxima = _group_maxima(probes, distractors, group, first)
    least = maxima.max(0) - np.float32(2 * probes.shape[1] * 2.0**-24)
    for number in np.flatnonzero((maxima >= least).any(1)):
        chosen = np.flatnonzero(maxima[number] >= least)
        rows = np.array(distractors[number * group : (number + 1) * group])
        near, columns = np.nonzero(probes[chosen] @ rows.T >= least[chosen, None])
        np.maximum.at(best, chosen[near], dot(probes[chosen[near]], rows[columns]))
    return best


def _group(num_probes: int, num_distractors: int, memory_mib: int) -> int:
    """Distractors of a group: their scores fit into a part of the memory that stays in the cache."""
    fits = min(memory_mib << 20, 8 << 20) // (4 * max(1, num_probes))
    return max(_LEAST_GROUP, min(fits, 4096, num_distractors))


def _group_maxima(probes: Floats, distractors: Floats, group: int, first: int) -> Floats:
    """Largest float32 score of each probe in each group, (groups, P).

    By NumPy's matrix product: its OpenBLAS takes 0.65 of the time of PyTorch's MKL on the processors this was timed on.
    """
    count = -(-len(distractors) // group)
    maxima = np.empty((count, len(probes)), np.float32)
    scores = np.empty((group, len(probes)), np.float32)
    columns = np.ascontiguousarray(probes.T)
    for number in range(count):
        rows = np.array(distractors[number * group : (number + 1) * group])
        check_unit(rows, "distractors", first + number * group)
        part = np.matmul(rows, columns, out=scores[: len(rows)])
        np.maximum.reduce(part, axis=0, out=maxima[number])
    return maxima


def _count(
    probes: Floats, identities: NDArray[np.int64], best: NDArray[np.float64], sizes: Sequence[int]
) -> RankResult:
    trials, single, hits = 0, 0, np.zeros(len(sizes), np.int64)
    for rows, scores in mate_scores(probes, identities):
        single += len(rows) == 1
        trials += scores.size
        hits += (scores[None] > best[:, rows, None]).sum((1, 2))
    if trials == 0:
        raise DataError(
            f"no identity among {len(probes)} probes has two pictures; a trial needs a probe and a mate: check the list"
        )
    return RankResult(trials, hits.tolist(), list(sizes), int(single))


def mate_scores(probes: Floats, identities: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.float64]]]:
    """For each identity the rows of its M probes, and their scores with their M - 1 mates, (M, M - 1)."""
    order = np.argsort(identities, kind="stable")
    _, starts = np.unique(identities[order], return_index=True)
    found = []
    for rows in np.split(order, starts[1:]):
        features = probes[rows]
        scores = np.stack([dot(feature[None], features) for feature in features])
        found.append((rows, scores[~np.eye(len(rows), dtype=bool)].reshape(len(rows), len(rows) - 1)))
    return found
