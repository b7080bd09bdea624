"""RecordIO files (``train.rec``), read and written without mxnet.

Framing (dmlc-core's ``recordio.h``), little-endian: a part is the magic number, a word with a flag in its upper 3 bits
and a length in its lower 29, that many bytes, and zeros up to a multiple of 4. Where the magic stands at an aligned
place inside a payload it is left out and the record is split there: flag 0 is a whole record, 1 its first part, 2 a
middle one, 3 the last. A payload begins with mxnet's image header: number of labels, label, id, a second id; the labels
follow where there are any, then the picture's bytes.
"""

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from drconv.errors import DataError
from drconv.files import replacing

MAGIC = 0xCED7230A
MAGIC_BYTES = struct.pack("<I", MAGIC)
WHOLE, FIRST, MIDDLE, LAST = range(4)
MOST_BYTES = (1 << 29) - 1  # of a payload
_HEAD = struct.Struct("<II")
_IMAGE_HEADER = struct.Struct("<IfQQ")
HEADER_BYTES = _IMAGE_HEADER.size  # 24
_GUESS = 16 << 10  # bytes of the first read: nearly every JPEG of 112x112 fits


@dataclass(frozen=True)
class ImageRecord:
    """A payload taken apart: labels (float32, at least one), the id in the header, and the picture's bytes."""

    labels: NDArray[np.float32]
    number: int
    picture: bytes
    has_array: bool  # labels stood behind the header, as in identity records


def pack_payload(label: float | list[float], number: int, picture: bytes, second: int = 0) -> bytes:
    """The payload of an image record; a list of labels stands behind the header, as mxnet's ``pack`` writes it."""
    if isinstance(label, list):
        header = _IMAGE_HEADER.pack(len(label), 0.0, number, second)
        return header + np.asarray(label, "<f4").tobytes() + picture
    return _IMAGE_HEADER.pack(0, label, number, second) + picture


def unpack_payload(payload: bytes) -> ImageRecord:
    """Takes a payload apart.

    Raises:
        ValueError: it is shorter than its header says.
    """
    if len(payload) < HEADER_BYTES:
        raise ValueError(f"{len(payload)} bytes, where the header alone has {HEADER_BYTES}")
    flag, label, number, _ = _IMAGE_HEADER.unpack_from(payload)
    end = HEADER_BYTES + 4 * flag
    if end > len(payload):
        raise ValueError(f"the header promises {flag} labels in {end} bytes, the record has {len(payload)}")
    labels = np.frombuffer(payload, "<f4", flag, HEADER_BYTES) if flag else np.array([label], np.float32)
    return ImageRecord(labels, number, payload[end:], flag > 0)


def frame(payload: bytes) -> bytes:
    """The bytes of a record on disk.

    Raises:
        ValueError: the payload has 2**29 bytes or more.
    """
    if len(payload) > MOST_BYTES:
        raise ValueError(f"a record holds at most {MOST_BYTES} bytes, found {len(payload)}")
    parts = []
    begin = 0
    for position in _aligned_magics(payload):
        parts.append(payload[begin:position])
        begin = position + 4
    parts.append(payload[begin:])
    flags = [WHOLE] if len(parts) == 1 else [FIRST, *[MIDDLE] * (len(parts) - 2), LAST]
    framed = [_HEAD.pack(MAGIC, flag << 29 | len(part)) + part for flag, part in zip(flags, parts, strict=True)]
    return b"".join(framed) + bytes(-len(parts[-1]) % 4)


def _aligned_magics(payload: bytes) -> Iterator[int]:
    position = payload.find(MAGIC_BYTES)
    while position >= 0:
        if position % 4 == 0:
            yield position
        position = payload.find(MAGIC_BYTES, position + (4 if position % 4 == 0 else 1))


class RecordReader:
    """Records of one file by offset.

    Each process opens the file for itself, on its first read, and reads with ``pread``: no position is shared, so the
    object may be forked and pickled, and its memory does not grow with the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self._descriptor: tuple[int, int] | None = None  # process, descriptor

    def read(self, offset: int) -> bytes:
        """The payload of the record at an offset, its parts joined.

        Raises:
            DataError: the file is damaged or cut there, or a record does not begin there.
        """
        return self.read_with_end(offset)[0]

    def read_with_end(self, offset: int) -> tuple[bytes, int]:
        """The payload, and where the record ends, padding included (which the end of a file may lack)."""
        parts = []
        expected: tuple[int, ...] = (WHOLE, FIRST)
        position = offset
        while True:
            flag, part, position = self._part(position, offset, expected)
            parts.append(part)
            if flag in (WHOLE, LAST):
                return MAGIC_BYTES.join(parts), position
            expected = (MIDDLE, LAST)

    def _part(self, position: int, offset: int, expected: tuple[int, ...]) -> tuple[int, bytes, int]:
        data = self._pread(_GUESS, position)
        if len(data) < 8:
            raise self.error(offset, f"the file ends at {self.size}, inside the record")
        magic, word = _HEAD.unpack_from(data)
        flag, length = word >> 29, word & MOST_BYTES
        if magic != MAGIC or flag not in expected:
            raise self.error(offset, f"no part of a record at {position}: found {magic:#010x} with flag {flag}")
        if position + 8 + length > self.size:
            raise self.error(offset, f"{length} bytes announced, the file ends at {self.size}")
        if len(data) < 8 + length:
            data += self._pread(8 + length - len(data), position + len(data))
        return flag, data[8 : 8 + length], position + 8 + length + -length % 4

    def error(self, offset: int, finding: str) -> DataError:
        return DataError(f"{self.path}: damaged record at offset {offset} ({finding}); copy the file again")

    def _pread(self, length: int, position: int) -> bytes:
        if self._descriptor is None or self._descriptor[0] != os.getpid():
            self._descriptor = (os.getpid(), os.open(self.path, os.O_RDONLY))
        return os.pread(self._descriptor[1], length, position)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_descriptor": None}

    def __del__(self) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None and descriptor[0] == os.getpid():
            os.close(descriptor[1])


class RecordWriter:
    """Writes ``<stem>.rec`` and ``<stem>.idx`` (a line for each record: key, tab, offset) under temporary names.

    Both get their names when the block ends without an error; else both are removed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()

    def write(self, key: int, payload: bytes) -> None:
        self._index.write(b"%d\t%d\n" % (key, self._records.tell()))
        self._records.write(frame(payload))

    def __enter__(self) -> "RecordWriter":
        self._index, self._records = (self._open(path) for path in (self.path.with_suffix(".idx"), self.path))
        return self

    def _open(self, path: Path) -> BinaryIO:
        temporary = self._stack.enter_context(replacing(path))
        return self._stack.enter_context(open(temporary, "wb"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
