"""Verification sets of insightface (``lfw.bin``, ``cfp_fp.bin``, ``agedb_30.bin``), read without running anything.

Such a file is a pickle of two lists: encoded pictures, of which 2k and 2k + 1 are pair k, and whether each pair shows
one identity. Python 2 and 3 wrote them with protocols 2 to 5. The reader knows lists, tuples, bytes, numbers, booleans
and one-dimensional arrays of bytes or booleans; any other name in the file ends the reading before it is looked up.
"""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drconv.errors import DataError

_BYTE_TYPES = {"u1", "|u1", "i1", "b1", "|b1", "?", "bool", "uint8"}


def read_pairs(path: Path) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Encoded pictures (2 n) and whether each of the n pairs is of one identity.

    Raises:
        DataError: the file is no such pickle, names anything else, or its lists do not fit together.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; data.faces.verification lists .bin files below data.root")
    try:
        data = path.read_bytes()
        _check_numbers(data)
        content = _Reader(io.BytesIO(data), encoding="bytes").load()
        pictures, same = content
        flags = np.array([_flag(value) for value in same], dtype=bool)
        encoded = [_picture(value, number) for number, value in enumerate(pictures)]
    except _RefusedError as error:
        raise DataError(f"{path}: {error}; a verification set is two lists, of pictures and of booleans") from None
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise DataError(f"{path} is no verification set ({reason}); copy it again") from None
    if 2 * len(flags) != len(encoded) or not encoded:
        raise DataError(f"{path} has {len(encoded)} pictures for {len(flags)} pairs; copy it again")
    return encoded, flags


def _check_numbers(data: bytes) -> None:
    """A pickle numbers what it uses again, from 0 on, and the reader makes a table as long as the largest number: a
    number of four bytes alone would take 64 GiB."""
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise _RefusedError(f"it numbers an object {argument} in {len(data)} bytes")


class _RefusedError(Exception):
    """Something that has no place in a verification set."""


class _Type:
    """Stands for numpy.dtype: its name is kept, its state ignored."""

    def __init__(self, name: Any = b"", *_: Any) -> None:
        self.name = name.decode() if isinstance(name, bytes) else str(name)

    def __setstate__(self, state: Any) -> None: ...


class _Array:
    """Stands for numpy.ndarray while it is read; becomes bytes."""

    content = b""

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, _, content = state
        self.content = _checked(kind, shape, content)


def _checked(kind: Any, shape: Any, content: Any) -> bytes:
    if not isinstance(kind, _Type) or kind.name not in _BYTE_TYPES:
        raise _RefusedError(f"it holds an array of {getattr(kind, 'name', kind)}")
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or int(np.prod(shape)) != len(content):
        raise _RefusedError("it holds an array whose shape is not that of its bytes")
    return bytes(content)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(content: Any, kind: Any, shape: Any, *_: Any) -> _Array:
    array = _Array()
    array.content = _checked(kind, shape, bytes(content))
    return array


def _scalar(kind: Any, content: Any = b"") -> int:
    return _checked(kind, (1,), content)[0]


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise _RefusedError("it holds text in another encoding than latin1")
    return text.encode("latin1")


_NAMES: dict[tuple[str, str], Any] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type}
_NAMES[("_codecs", "encode")] = _encode
for _module in ("numpy.core", "numpy._core"):
    _NAMES[(f"{_module}.multiarray", "_reconstruct")] = _reconstruct
    _NAMES[(f"{_module}.multiarray", "scalar")] = _scalar
    _NAMES[(f"{_module}.numeric", "_frombuffer")] = _from_buffer


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise _RefusedError(f"it names {module}.{name}")
        return _NAMES[(module, name)]


def _flag(value: Any) -> bool:
    if isinstance(value, bool | int) and value in (0, 1):
        return bool(value)
    raise _RefusedError(f"it holds {value!r:.40} where a boolean must be")


def _picture(value: Any, number: int) -> bytes:
    content = value.content if isinstance(value, _Array) else value
    if isinstance(content, bytes) and content:
        return content
    raise _RefusedError(f"picture {number % 2 + 1} of pair {number // 2} is {type(value).__name__}, not bytes")
