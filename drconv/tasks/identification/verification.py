"""Are two pictures of one identity? Ten-fold accuracy as insightface computes it, and the rate at a false accept rate.

Pairs are compared by the squared distance d of unit vectors (d = 2 - 2 cos). In each fold the threshold is the one of
0, 0.01, ..., 3.99 that is best on the nine other folds, the lowest of equals; "same" is a distance strictly below it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drconv.errors import DataError

THRESHOLDS = np.arange(0, 4, 0.01)
_PAIRED = 4000  # pictures at most from which pairs are drawn: all pairs of them are looked at
Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Verification:
    """Attributes:
    folds: percent correct of each fold.
    threshold: mean of the folds' thresholds, a squared distance.
    rate: percent of same pairs accepted at a false accept rate of at most 0.001 on the other folds; None where a fold
        lacks one kind of pairs.
    """

    folds: list[float]
    threshold: float
    rate: float | None

    @property
    def accuracy(self) -> float:
        """Mean over the folds."""
        return float(np.mean(self.folds))

    @property
    def std(self) -> float:
        """Standard deviation over the folds (not the standard error)."""
        return float(np.std(self.folds))

    @property
    def cosine(self) -> float:
        """The mean threshold as a cosine."""
        return 1 - self.threshold / 2


def verify(first: NDArray[np.floating], second: NDArray[np.floating], same: Flags, folds: int = 10) -> Verification:
    """Compares the rows of two sets of embeddings.

    Args:
        first: (n, D), need not be normalised.
        second: (n, D).
        same: whether the rows of a pair are of one identity (n,).
        folds: consecutive, as many as there are pairs at most; the first ones hold one more where n does not divide.

    Raises:
        DataError: fewer than two pairs, or an embedding that is zero or not finite.
    """
    if len(same) < 2:
        raise DataError(f"a verification set needs at least two pairs, found {len(same)}")
    distances = np.square(_unit(first) - _unit(second)).sum(1)
    parts = np.array_split(np.arange(len(same)), min(folds, len(same)))
    accuracies, thresholds, rates = [], [], []
    for part in parts:
        others = np.delete(np.arange(len(same)), part)
        threshold = _best_threshold(distances[others], same[others])
        accuracies.append(100 * float(((distances[part] < threshold) == same[part]).mean()))
        thresholds.append(threshold)
        rates.append(_rate(distances, same, part, others))
    known = [rate for rate in rates if rate is not None]
    mean_rate = float(np.mean(known)) if len(known) == len(parts) else None
    return Verification(accuracies, float(np.mean(thresholds)), mean_rate)


def drawn_pairs(identities: NDArray[np.int64], most: int, seed: int = 0) -> tuple[NDArray[np.int64], Flags]:
    """Pairs of pictures for verification where no list of pairs is given: half of one identity, half of two.

    Returns:
        positions (n, 2) and whether a pair is of one identity (n,), the two kinds alternating so that folds hold both.
    """
    random = np.random.default_rng(seed)
    used = np.sort(random.permutation(len(identities))[:_PAIRED])
    rows, columns = (used[index] for index in np.triu_indices(len(used), 1))
    same = identities[rows] == identities[columns]
    count = min(most // 2, int(same.sum()), int((~same).sum()))
    chosen = [random.permutation(np.flatnonzero(kind))[:count] for kind in (same, ~same)]
    order = np.stack(chosen, 1).reshape(-1)
    return np.stack([rows[order], columns[order]], 1), same[order]


def _unit(rows: NDArray[np.floating]) -> Doubles:
    wide = rows.astype(np.float64)
    lengths = np.sqrt(np.square(wide).sum(1, keepdims=True))
    bad = ~(np.isfinite(lengths) & (lengths > 0))
    if bad.any():
        raise DataError(f"the embedding of pair {int(np.argmax(bad))} is zero or not finite; lower the learning rate")
    return wide / lengths


def _best_threshold(distances: Doubles, same: Flags) -> float:
    """First of THRESHOLDS with the most pairs right; the pairs below each are counted in sorted order."""
    accepted = np.searchsorted(np.sort(distances[same]), THRESHOLDS, side="left")
    false = np.searchsorted(np.sort(distances[~same]), THRESHOLDS, side="left")
    return float(THRESHOLDS[np.argmax(accepted - false)])


def _rate(
    distances: Doubles, same: Flags, part: NDArray[np.int64], others: NDArray[np.int64], target: float = 1e-3
) -> float | None:
    """Percent of the part's same pairs below the largest threshold that accepts at most ``target`` of the other folds'
    different pairs; nothing is interpolated."""
    negatives = np.sort(distances[others][~same[others]])
    positives = distances[part][same[part]]
    if len(negatives) == 0 or len(positives) == 0:
        return None
    return 100 * float((positives < negatives[int(target * len(negatives))]).mean())
