"""What a RecordIO file of faces holds: which records are pictures, and of which identity.

No key is special. MS1M-V2 keeps record 0 as a header, then pictures, then one record for each identity; shuffled files
and those of im2rec have pictures alone, from key 0 or 1 on. Here a picture is a record with bytes left behind its
labels, and everything else is counted and left out.
"""

import hashlib
import io
import logging
import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drconv.errors import DataError
from drconv.files import open_regular, replace_file
from drconv.tasks.identification.recordio import (
    FIRST,
    HEADER_BYTES,
    LAST,
    MAGIC,
    MIDDLE,
    MOST_BYTES,
    WHOLE,
    ImageRecord,
    RecordReader,
    unpack_payload,
)

logger = logging.getLogger(__name__)
Integers = NDArray[np.int64]

_VERSION = 1
_CHUNK = 1 << 17  # records whose headers are looked at together
_FLOAT32_EXACT = 1 << 24  # labels are stored as float32
CLASSES_FILE = "classes.txt"


@dataclass(frozen=True)
class FaceIndex:
    """The pictures of a file in the order of their keys; three arrays, whatever the number of processes.

    Attributes:
        keys: int64 (N,).
        offsets: int64 (N,), bytes.
        labels: int32 (N,).
        identities: records of identities that were left out.
        headers: header records that were left out, 0 or 1.
    """

    keys: Integers
    offsets: Integers
    labels: NDArray[np.int32]
    identities: int
    headers: int

    def fingerprint(self) -> dict[str, int | str]:
        digest = hashlib.sha256()
        for array in (self.keys, self.offsets, self.labels):
            digest.update(array.tobytes())
        return {"files": len(self.keys), "classes": int(self.labels.max()) + 1, "sha256": digest.hexdigest()}


def open_faces(path: Path) -> FaceIndex:
    """Reads the index beside a ``.rec`` file, checks the header of every record, and stores what was found beside it.

    A missing or senseless ``.idx`` is made again by going through the file once.

    Raises:
        DataError: the file is damaged or cut, the index belongs to another file, or a label is no class number; the
            message has the file, the key and the offset.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; data.root must hold train.rec, train.idx and property")
    stored = _load(path)
    if stored is not None:
        return stored
    reader = RecordReader(path)
    found = _read_idx(path.with_suffix(".idx"), reader)
    keys, offsets = found if found is not None else _rebuild(path, reader)
    order = np.argsort(keys, kind="stable")
    index = _classify(reader, keys[order], offsets[order])
    _store(path, index)
    return index


def number_of_classes(path: Path, labels: NDArray[np.int32]) -> int:
    """The number of classes by the labels, compared with the file ``property`` where there is one.

    Raises:
        DataError: the two disagree.
    """
    counted = int(labels.max()) + 1
    missing = np.flatnonzero(np.bincount(labels, minlength=counted) == 0)
    if len(missing):
        logger.warning("%s: %d classes have no picture, the first is %d", path, len(missing), missing[0])
    file = path.with_name("property")
    if not file.is_file():
        return counted
    first = file.read_text(errors="replace").split("\n")[0].split(",")
    if not first[0].strip().isdecimal():
        raise DataError(f"{file}: the first line must be classes,rows,columns, found {','.join(first)!r:.60}")
    if int(first[0]) != counted:
        raise DataError(
            f"{file} says {first[0]} classes, the labels of {path.name} go from {labels.min()} to {labels.max()}; "
            f"correct the file that is wrong"
        )
    return counted


def class_names(path: Path, count: int) -> list[str]:
    """Names of the classes: those that ``pack`` stored, or the numbers."""
    file = path.with_name(CLASSES_FILE)
    if not file.is_file():
        return [str(number) for number in range(count)]
    names = file.read_text("utf-8", errors="replace").splitlines()
    if len(names) != count or len(set(names)) != count:
        raise DataError(
            f"{file} has {len(names)} names, {len(set(names))} of them different, for {count} classes; remove it or "
            f"write one name a line"
        )
    return names


def _read_idx(path: Path, reader: RecordReader) -> tuple[Integers, Integers] | None:
    """Keys and offsets of an ``.idx`` file; None where it must be made again.

    Lines are key and offset between white space; keys go in any order, with gaps.
    """
    if not path.is_file():
        logger.warning("%s does not exist: going through %s once", path, reader.path)
        return None
    try:
        numbers = np.fromstring(path.read_text(), dtype=np.int64, sep=" ")
    except (ValueError, DeprecationWarning, UnicodeDecodeError):
        numbers = np.zeros(1, np.int64)
    keys, offsets = (numbers[0::2], numbers[1::2]) if len(numbers) % 2 == 0 else (numbers, numbers[:0])
    wrong = len(offsets) == 0 or len(np.unique(offsets)) < len(offsets) or len(np.unique(keys)) < len(keys)
    if wrong or (offsets % 4).any() or (offsets < 0).any() or (offsets == np.iinfo(np.int64).max).any():
        logger.warning("%s has lines that cannot be right: going through %s once", path, reader.path)
        return None
    last = int(np.argmax(offsets))
    if offsets[last] + 8 > reader.size:
        raise DataError(
            f"{reader.path} ends at {reader.size}, {path.name} has key {keys[last]} at offset {offsets[last]}: the "
            f"file is cut, or the index belongs to another; copy the file again, or remove the index"
        )
    return keys, offsets


def _rebuild(path: Path, reader: RecordReader) -> tuple[Integers, Integers]:
    offsets = np.fromiter(scan(path), np.int64)
    if len(offsets) == 0:
        raise DataError(f"{path} holds no record; copy the file again")
    ids = np.concatenate([part.ids for part in _headers(reader, np.arange(len(offsets)), offsets)])
    keys = ids if len(np.unique(ids)) == len(ids) else np.arange(len(offsets))
    lines = "".join(f"{key}\t{offset}\n" for key, offset in zip(keys.tolist(), offsets.tolist(), strict=True))
    try:
        replace_file(path.with_suffix(".idx"), lines)
    except OSError as error:
        logger.warning("the index of %s cannot be kept beside it (%s)", path, error.strerror)
    return keys, offsets


def scan(path: Path) -> Iterator[int]:
    """Offsets of all records of a file, by going from head to head.

    Raises:
        DataError: a head is not where it must be, or the file ends inside a record.
    """
    size, position, start, inside = path.stat().st_size, 0, 0, False
    if size == 0:
        return
    head = struct.Struct("<II")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        while position + 8 <= size:
            magic, word = head.unpack_from(view, position)
            flag = word >> 29
            if magic != MAGIC or flag not in ((MIDDLE, LAST) if inside else (WHOLE, FIRST)):
                raise DataError(f"{path}: no record at offset {position} (found {magic:#010x}); copy the file again")
            if not inside:
                start = position
            end = position + 8 + (word & MOST_BYTES)
            if end > size:
                raise DataError(f"{path} is cut: the record at offset {start} ends at {end}, the file at {size}")
            inside = flag in (FIRST, MIDDLE)
            if not inside:
                yield start
            position = end + -end % 4
    if inside or position < size:
        raise DataError(f"{path} is cut inside the record at offset {start if inside else position}")
    if position > size:
        logger.warning("%s lacks the padding of its last record", path)


@dataclass(frozen=True)
class _Headers:
    """What the heads of some records say, (n,) each."""

    ids: Integers
    labels: NDArray[np.float32]
    seconds: NDArray[np.float32]  # second label of an array, else 0
    has_picture: NDArray[np.bool_]


def _headers(reader: RecordReader, keys: Integers, offsets: Integers) -> Iterator[_Headers]:
    """Reads all headers through a map of the file; one gather for each word of 131,072 records."""
    words = np.memmap(reader.path, "<u4", "r", shape=(reader.size // 4,))
    for begin in range(0, len(offsets), _CHUNK):
        part = offsets[begin : begin + _CHUNK]

        def word(number: int, part: Integers = part) -> NDArray[np.uint32]:
            return words[np.minimum(part // 4 + number, len(words) - 1)]

        parts, lengths = word(1) >> 29, word(1).astype(np.int64) & MOST_BYTES
        counts = word(2).astype(np.int64)
        ends = HEADER_BYTES + 4 * counts
        plain = (word(0) == MAGIC) & (parts == WHOLE) & (lengths >= ends) & (part + 8 + lengths <= reader.size)
        arrays = counts > 0
        labels = np.where(arrays, word(8), word(3)).view(np.float32).copy()
        seconds = np.where(counts > 1, word(9), 0).astype(np.uint32).view(np.float32).copy()
        ids = (word(4).astype(np.uint64) | word(5).astype(np.uint64) << np.uint64(32)).astype(np.int64)
        has_picture = lengths > ends
        for at in np.flatnonzero(~plain):  # split records, and damaged ones, one by one
            record = _read(reader, int(keys[begin + at]), int(part[at]))
            ids[at] = np.uint64(record.number).astype(np.int64)
            labels[at], has_picture[at] = record.labels[0], len(record.picture) > 0
            seconds[at] = record.labels[1] if len(record.labels) > 1 else 0
        yield _Headers(ids, labels, seconds, has_picture)


def _read(reader: RecordReader, key: int, offset: int) -> ImageRecord:
    try:
        return unpack_payload(reader.read(offset))
    except (DataError, ValueError) as error:
        raise DataError(f"{reader.path}: key {key} at offset {offset} is no record of a picture: {error}") from None


def _classify(reader: RecordReader, keys: Integers, offsets: Integers) -> FaceIndex:
    found = list(_headers(reader, keys, offsets))
    labels = np.concatenate([part.labels for part in found])
    seconds = np.concatenate([part.seconds for part in found])
    pictures = np.concatenate([part.has_picture for part in found])
    _check_end(reader, int(offsets.max()))
    empty = np.flatnonzero(~pictures)
    # The header's labels are the first key of an identity and the one behind the last.
    headers = sum(
        1 for at in empty if keys[at] == 0 or (seconds[at] - labels[at] == len(empty) - 1 and keys[at] < labels[at])
    )
    if not pictures.any():
        raise DataError(f"{reader.path} holds no picture, {len(empty)} records without one; choose another data.root")
    wanted = labels[pictures]
    wrong = ~((wanted >= 0) & (wanted < _FLOAT32_EXACT) & (wanted == np.floor(wanted)))
    if wrong.any():
        at = np.flatnonzero(pictures)[int(np.argmax(wrong))]
        raise DataError(
            f"{reader.path}: key {keys[at]} at offset {offsets[at]} has the label {labels[at]}, no class number"
        )
    return FaceIndex(keys[pictures], offsets[pictures], wanted.astype(np.int32), len(empty) - headers, headers)


def _check_end(reader: RecordReader, last: int) -> None:
    """The record at the largest offset ends the file, or another record stands behind it."""
    _, end = reader.read_with_end(last)
    if end > reader.size:
        logger.warning("%s lacks the padding of its last record", reader.path)
    elif end < reader.size:
        reader.read(end)
        logger.warning("%s holds records behind offset %d that its index does not list", reader.path, last)


def _stored_path(path: Path) -> Path:
    return path.with_name(path.name + ".faces.npz")


def _stamps(path: Path) -> list[int]:
    stamps = [_VERSION]
    for file in (path, path.with_suffix(".idx")):
        state = file.stat() if file.exists() else None
        stamps += [state.st_size, state.st_mtime_ns] if state else [-1, -1]
    return stamps


def _store(path: Path, index: FaceIndex) -> None:
    buffer = io.BytesIO()
    counts = np.array([index.identities, index.headers])
    np.savez(buffer, keys=index.keys, offsets=index.offsets, labels=index.labels, counts=counts, stamps=_stamps(path))
    try:
        replace_file(_stored_path(path), buffer.getvalue())
    except OSError as error:
        logger.warning("what was found in %s cannot be kept beside it (%s)", path, error.strerror)


def _load(path: Path) -> FaceIndex | None:
    try:
        with open_regular(_stored_path(path)) as file, np.load(file) as stored:
            if stored["stamps"].tolist() != _stamps(path):
                return None
            identities, headers = stored["counts"].tolist()
            index = FaceIndex(stored["keys"], stored["offsets"], stored["labels"], int(identities), int(headers))
    except Exception:  # NumPy and zipfile raise many kinds for damaged files
        return None
    return index if _is_sound(index, path.stat().st_size) else None


def _is_sound(index: FaceIndex, size: int) -> bool:
    """Whether ``_store`` can have written it."""
    arrays = (index.keys, np.int64), (index.offsets, np.int64), (index.labels, np.int32)
    if any(array.ndim != 1 or array.dtype != kind or not len(array) == len(index.keys) > 0 for array, kind in arrays):
        return False
    offsets, labels = index.offsets, index.labels
    return bool(offsets.min() >= 0 and offsets.max() < size and labels.min() >= 0 and labels.max() < _FLOAT32_EXACT)
