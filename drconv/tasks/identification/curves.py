"""CMC and ROC of an identification, as the MegaFace devkit writes them, and rank-1 over the number of distractors."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drconv.files import replace_file
from drconv.tasks.identification.rank import Floats, mate_scores

_COSINES = np.linspace(-1, 1, 4001)
Points = tuple[list[float], list[float]]


def ranks_and_rates(
    probes: Floats, identities: NDArray[np.int64], distractors: Floats
) -> tuple[NDArray[np.int64], Points]:
    """The rank of every trial's mate among all distractors, and the ROC over all pairs.

    A mate's rank is the number of distractors that score at least as high (0 is a hit). The scores are float32 here, so
    ties within rounding can move a rank by one; ``rank.rank1`` is exact.

    Returns:
        ranks (trials,) sorted; false and true positive rates at 4,001 cosines, every probe against every distractor.
    """
    ranks, above = [], np.zeros(len(_COSINES))
    mates = []
    for rows, scores in mate_scores(probes, identities):
        for row, own in zip(rows, scores, strict=True):
            ordered = np.sort(distractors @ probes[row])
            ranks.append(len(ordered) - np.searchsorted(ordered, own.astype(np.float32), side="left"))
            above += len(ordered) - np.searchsorted(ordered, _COSINES, side="left")
        mates.append(scores.ravel())
    positives = np.sort(np.concatenate(mates))
    true = 1 - np.searchsorted(positives, _COSINES, side="left") / len(positives)
    false = above / (len(probes) * len(distractors))
    return np.sort(np.concatenate(ranks)), (false[::-1].tolist(), true[::-1].tolist())


def cmc(ranks: NDArray[np.int64], hits: int) -> Points:
    """Recall at each rank where it changes; ``hits`` is the exact number of trials of rank 0."""
    values, counts = np.unique(ranks, return_counts=True)
    recalls = np.cumsum(counts) / len(ranks)
    kept = values > 0
    return [0, *values[kept].tolist()], [hits / len(ranks), *recalls[kept].tolist()]


def write_result(path: Path, curve: Points, roc: Points) -> None:
    """Writes ``cmc_<probes>_megaface_<name>_<size>_<set>.json`` with the devkit's keys; rank-1 is ``cmc[1][0]``."""
    replace_file(path, json.dumps({"cmc": [list(part) for part in curve], "roc": [list(part) for part in roc]}))


def write_picture(path: Path, by_size: dict[int, float], curve: Points) -> None:
    """An SVG of rank-1 (percent) over the number of distractors, and of the CMC, both with logarithmic axes."""
    parts = [_axes(60, "rank-1, % over distractors"), _axes(420, "recall, % over rank")]
    parts += [_line(60, list(by_size), list(by_size.values()))]
    parts += [_line(420, [rank + 1 for rank in curve[0]], [100 * recall for recall in curve[1]])]
    for size, value in by_size.items():
        x, y = _place(60, size, value)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/><text x="{x - 8:.1f}" y="{y - 7:.1f}">{value:.1f}</text>'
        )
    body = "\n".join(parts)
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="740" height="280" font-family="sans-serif" font-size="10">'
    replace_file(path, f'{head}\n<rect width="740" height="280" fill="white"/>\n{body}\n</svg>\n')


def _place(left: int, x: float, y: float) -> tuple[float, float]:
    return left + 46 * np.log10(max(1.0, x)), 240 - 2.0 * y


def _line(left: int, xs: list[float], ys: list[float]) -> str:
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (_place(left, x, y) for x, y in zip(xs, ys, strict=True)))
    return f'<polyline points="{points}" fill="none" stroke="#0072B2" stroke-width="1.6"/>'


def _axes(left: int, title: str) -> str:
    parts = [f'<text x="{left}" y="28">{title}</text>']
    for power in range(7):
        x, _ = _place(left, 10.0**power, 0)
        parts.append(f'<path d="M{x:.1f} 40v200" stroke="#ddd"/><text x="{x - 8:.1f}" y="254">1e{power}</text>')
    for value in range(0, 101, 20):
        _, y = _place(left, 1, value)
        parts.append(
            f'<path d="M{left} {y:.1f}h276" stroke="#ddd"/><text x="{left - 24}" y="{y + 3:.1f}">{value}</text>'
        )
    return "".join(parts)
