"""Embeddings of many pictures, kept on disk: an interrupted extraction goes on where it was.

The folder's name is a hash of the weights, the list and what is done to the pictures, so that other weights never meet
old embeddings.
"""

import hashlib
import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from drconv.errors import DataError
from drconv.files import replace_file, replacing
from drconv.tasks.identification.rank import Floats

PART = 1024  # rows of a file: what an interruption can lose


def fingerprint_of(*parts: Any) -> str:
    """A hash of JSON content: of weights, list and preprocessing."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def extract(
    embed: Callable[[range], Tensor],
    count: int,
    cache: Path,
    fingerprint: str,
    batch_size: int = 64,
    say: Callable[[str], None] = print,
) -> Floats:
    """Embeddings (count, D) float32, from the cache where they are there.

    Args:
        embed: gives the embeddings (n, D) of a range of positions.
        count: of the pictures.
        cache: folder of all caches.
        fingerprint: from ``fingerprint_of``.
        batch_size: positions of one call.
        say: takes a line of progress after every part.

    Raises:
        DataError: an embedding is not finite.
    """
    folder = cache / fingerprint[:20]
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "about.json", json.dumps({"fingerprint": fingerprint, "count": count}))
    paths = []
    began, made = time.perf_counter(), 0
    for start in range(0, count, PART):
        rows = range(start, min(start + PART, count))
        path = folder / f"{start:09}.npy"
        paths.append(path)
        if _is_whole(path, len(rows)):
            continue
        part = np.concatenate(
            [embed(rows[i : i + batch_size]).float().cpu().numpy() for i in range(0, len(rows), batch_size)]
        )
        bad = ~np.isfinite(part).all(1)
        if bad.any():
            raise DataError(f"the embedding of picture {start + int(np.argmax(bad))} is not finite; check the weights")
        _save(path, part)
        made += len(rows)
        left = (time.perf_counter() - began) / made * (count - rows.stop)
        say(f"embeddings: {rows.stop:,} of {count:,}, {timedelta(seconds=round(left))} left")
    return np.concatenate([np.load(path, mmap_mode="r") for path in paths])


def _is_whole(path: Path, rows: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r")) == rows
    except (OSError, ValueError, EOFError):
        return False


def _save(path: Path, rows: Floats) -> None:
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, rows)
