"""Embeddings of many pictures, kept on disk: an interrupted extraction goes on where it was.

The folder's name is a hash of the weights and of what is done to the pictures, a part's name one of what it shows, so
that other weights and other pictures never meet old embeddings, and a changed picture costs its own part alone.
"""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from drconv.errors import DataError
from drconv.files import open_regular, replace_file, replacing
from drconv.tasks.identification.rank import Floats

PART = 1024  # rows of a file: what an interruption can lose


def fingerprint_of(*parts: Any) -> str:
    """A hash of JSON content: of weights and preprocessing, or of some pictures."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def extract(
    embed: Callable[[range], Tensor],
    entries: Sequence[Any],
    cache: Path,
    fingerprint: str,
    batch_size: int = 64,
    say: Callable[[str], None] = print,
) -> Floats:
    """Embeddings (N, D) float32, from the cache where they are there.

    Args:
        embed: gives the embeddings (n, D) of a range of positions.
        entries: what stands at each of the N positions, as JSON: name, size and time of a picture.
        cache: folder of all caches.
        fingerprint: from ``fingerprint_of``.
        batch_size: positions of one call.
        say: takes a line of progress after every part.

    Raises:
        DataError: an embedding is not finite, or a kept part has rows of another length.
    """
    folder = cache / fingerprint[:20]
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "about.json", json.dumps({"fingerprint": fingerprint}))
    count, found = len(entries), np.empty((len(entries), 0), np.float32)
    began, made = time.perf_counter(), 0
    for start in range(0, count, PART):
        rows = range(start, min(start + PART, count))
        path = folder / f"{start:09}-{fingerprint_of(*entries[start : rows.stop])[:20]}.npz"
        part = _kept(path, len(rows))
        if part is None:
            part = _embedded(embed, rows, batch_size)
            _keep(path, part)
            made += len(rows)
            left = (time.perf_counter() - began) / made * (count - rows.stop)
            say(f"embeddings: {rows.stop:,} of {count:,}, {timedelta(seconds=round(left))} left")
        if start == 0:
            found = np.empty((count, part.shape[1]), np.float32)
        if part.shape[1] != found.shape[1]:
            raise DataError(f"{path} has rows of {part.shape[1]} numbers, others {found.shape[1]}; remove {folder}")
        found[start : rows.stop] = part
    return found


def _embedded(embed: Callable[[range], Tensor], rows: range, batch_size: int) -> Floats:
    part: Floats = np.concatenate(
        [embed(rows[i : i + batch_size]).float().cpu().numpy() for i in range(0, len(rows), batch_size)]
    )
    bad = ~np.isfinite(part).all(1)
    if bad.any():
        raise DataError(f"the embedding of picture {rows.start + int(np.argmax(bad))} is not finite; check the weights")
    return part


def _kept(path: Path, rows: int) -> Floats | None:
    """A kept part; None where there is none, or it is damaged, which the checksum in a .npz tells."""
    try:
        with open_regular(path) as file, np.load(file) as stored:
            part: Floats = stored["rows"]
    except Exception:  # NumPy and zipfile raise many kinds for damaged files
        return None
    return part if part.dtype == np.float32 and part.ndim == 2 and len(part) == rows else None


def _keep(path: Path, rows: Floats) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, rows=rows)
