"""Files of the MegaFace devkit: lists of pictures, features, noise lists, results.

- A list is JSON, ``{"path": [...], "id": [...]}``; lists of distractors may lack ``id``, and end in ``_<size>_<set>``.
- A feature file is int32 rows, columns, stride and type (5: float32, 6: float64), then the numbers; a vector has D rows
  and 1 column. The stride is a hint only: the devkit's writer states 4 bytes a number for float64 too.
- A noise list has one name a line, as insightface's ``facescrub_noises.txt`` and ``megaface_noises.txt``.
"""

import json
import posixpath
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drconv.errors import DataError
from drconv.files import MAX_JSON, read_bounded, read_json, replace_file
from drconv.tasks.identification.rank import Floats, normalise

_TYPES: dict[int, np.dtype[np.floating]] = {5: np.dtype("<f4"), 6: np.dtype("<f8")}


@dataclass(frozen=True)
class TemplateList:
    """Pictures of a list: paths relative to a folder, and their identities (0, 1, ...; -1 where the list has none)."""

    paths: list[str]
    identities: NDArray[np.int64]


def read_list(path: Path) -> TemplateList:
    """Reads a devkit list.

    Raises:
        DataError: it is no such list, is empty, names a picture twice or one outside the folder, or has another number
            of ids than of paths.
    """
    try:
        content = read_json(path)
        paths, ids = _texts(content["path"]), _texts(content["id"]) if content.get("id") is not None else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f'{path} is no list of the devkit ({error}); expected {{"path": [...], "id": [...]}}') from None
    _check_paths(path, paths)
    if ids is None:
        return TemplateList(paths, np.full(len(paths), -1))
    if len(ids) != len(paths):
        raise DataError(f"{path} has {len(paths)} paths and {len(ids)} ids; correct the list")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(ids))}
    return TemplateList(paths, np.array([numbers[name] for name in ids], np.int64))


def _check_paths(path: Path, entries: list[str]) -> None:
    if not entries:
        raise DataError(f"{path} names no picture; choose another list")
    seen: set[str] = set()
    for entry in entries:
        plain = posixpath.normpath(entry)
        if plain.startswith(("/", "../")) or plain in (".", "..") or "\0" in plain:
            raise DataError(f"{path}: the path {entry} leaves the folder; paths are relative to it")
        if plain in seen:
            raise DataError(f"{path} names {entry} twice; remove one")
        seen.add(plain)


def _texts(entries: Any) -> list[str]:
    """Names and ids may be numbers."""
    if not isinstance(entries, list) or not all(isinstance(entry, str | int) for entry in entries):
        raise TypeError(f"{entries!r:.60} is no list of texts")
    return [str(entry) for entry in entries]


def write_list(path: Path, paths: Sequence[str], ids: Sequence[str] | None = None) -> None:
    """Writes a devkit list."""
    content = {"path": list(paths)} if ids is None else {"path": list(paths), "id": list(ids)}
    replace_file(path, json.dumps(content))


def size_of_list(path: Path) -> int | None:
    """The number of distractors by the list's name, ``..._<size>_<set>``."""
    found = re.search(r"_(\d+)_\d+$", path.name)
    return int(found[1]) if found else None


def check_files(folder: Path, names: Sequence[str], suffix: str = "") -> None:
    """Before hours of extraction: every file of a list exists.

    Raises:
        DataError: with their number and the first that is missing.
    """
    missing = [name for name in names if not (folder / f"{name}{suffix}").is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} files of the list are not in {folder}, first {missing[0]}{suffix}"
        )


def read_feature(path: Path) -> NDArray[np.float64]:
    """One feature vector.

    Raises:
        DataError: the file's size is not what its header says, or the type is not a float.
    """
    data = path.read_bytes()
    if len(data) < 16:
        raise DataError(f"{path} has {len(data)} bytes, fewer than the header of a feature file")
    rows, columns, _, kind = struct.unpack("<4i", data[:16])
    if kind not in _TYPES:
        raise DataError(f"{path} has the type {kind}; features are 5 (float32) or 6 (float64)")
    expected = 16 + rows * columns * _TYPES[kind].itemsize
    if rows < 1 or columns < 1 or len(data) != expected:
        raise DataError(f"{path} has {len(data)} bytes, its header of {rows}x{columns} numbers says {expected}")
    return np.frombuffer(data, _TYPES[kind], offset=16).astype(np.float64)


def write_feature(path: Path, vector: Floats) -> None:
    """Writes a vector as the devkit reads it: D rows, 1 column, float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, struct.pack("<4i", len(vector), 1, 4, 5) + np.asarray(vector, "<f4").tobytes())


def read_features(folder: Path, names: Sequence[str], suffix: str) -> Floats:
    """Unit rows of the files ``<folder>/<name><suffix>``, such as ``_algo.bin``; whatever their lengths were.

    Raises:
        DataError: a file is missing, or has another number of features than the first.
    """
    check_files(folder, names, suffix)
    rows: list[NDArray[np.float64]] = []
    for name in names:
        vector = read_feature(folder / f"{name}{suffix}")
        if rows and len(vector) != len(rows[0]):
            raise DataError(
                f"{folder / name}{suffix} has {len(vector)} features, {names[0]} has {len(rows[0])}; extract them anew"
            )
        rows.append(vector)
        if not (np.isfinite(vector).all() and vector.any()):
            raise DataError(f"{folder / name}{suffix} is zero or not finite; extract it again")
    return normalise(np.stack(rows), str(folder))


def read_noises(path: Path, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which pictures of a list a noise list names; by the whole path, or by its end after a slash."""
    try:
        text = read_bounded(path, MAX_JSON).decode("utf-8-sig", errors="replace")
    except ValueError as error:
        raise DataError(f"{path} is no noise list ({error}); expected one name a line") from None
    lines = {line.strip() for line in text.splitlines()} - {""}
    return np.array([any(tail in lines for tail in _tails(name)) for name in names], dtype=bool)


def _tails(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def check_trials(identities: NDArray[np.int64], noisy: Sequence[NDArray[np.bool_]], mode: str) -> None:
    """Before hours of extraction: there is something to measure, raw and cleaned.

    Args:
        identities: of the probes.
        noisy: probes and distractors that a noise list names.
        mode: of ``clean_probes``.

    Raises:
        DataError: no identity has two pictures, all pictures of one are noisy, or all distractors are.
    """
    kept = identities[~noisy[0]] if mode == "drop" else identities
    for left, text in ((identities, ""), (kept, " that are not noisy")):
        if len(np.unique(left)) == len(left):
            raise DataError(f"no identity of the probe list has two pictures{text}; a trial needs a probe and a mate")
    lost = np.setdiff1d(identities[noisy[0]], identities[~noisy[0]])
    if mode == "replace" and len(lost):
        first = int(np.flatnonzero(identities == lost[0])[0])
        raise DataError(
            f"all pictures of {len(lost)} identities are noisy, first that of probe {first}; use --noisy-probes drop"
        )
    if noisy[1].all():
        raise DataError("the noise list names all distractors, so none is left; correct it")


def clean_probes(
    features: Floats, identities: NDArray[np.int64], noisy: NDArray[np.bool_], mode: str
) -> tuple[Floats, NDArray[np.int64]]:
    """Treats noisy probes.

    Args:
        features: unit rows (P, D).
        identities: (P,).
        noisy: (P,).
        mode: keep; drop, which lowers the number of trials; replace, by the normalised sum of the clean features of
            the identity, as insightface does (without its small noise).

    Raises:
        DataError: replace, and an identity has noisy pictures alone.
    """
    if mode == "keep" or not noisy.any():
        return features, identities
    if mode == "drop":
        return features[~noisy], identities[~noisy]
    replaced = features.copy()
    for identity in np.unique(identities[noisy]):
        clean = (identities == identity) & ~noisy
        if not clean.any():
            raise DataError(f"all pictures of identity {identity} are noisy; use drop for the probes")
        replaced[(identities == identity) & noisy] = normalise(features[clean].sum(0, dtype=np.float64)[None])
    return replaced, identities
