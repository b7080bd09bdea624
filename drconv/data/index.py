"""The list of a data set's picture files, packed so that 1.28 million entries cost loader processes nothing.

Python objects in a list are copied into every forked process bit by bit, because reading one writes its
reference count (79 MB for each process at ImageNet's size). Here all names lie in one tensor of bytes:
nothing is written, and torch hands tensors to spawned processes through shared memory.
"""

import contextlib
import hashlib
import json
import logging
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from drconv.errors import DataError, printable
from drconv.files import open_regular

logger = logging.getLogger(__name__)

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
_VERSION = 1


@dataclass(frozen=True)
class FileIndex:
    """Picture files below one folder with their labels.

    Attributes:
        folder: the folder that the names are relative to.
        classes: names of the classes; a label is a position in this list.
        labels: int16 or int32 (N,).
        names: uint8, all relative file names one after the other.
        ends: int64 (N,), where each name ends in ``names``.
        sizes: int64 (N,) in bytes, or None where they were not asked for.
    """

    folder: Path
    classes: list[str]
    labels: Tensor
    names: Tensor
    ends: Tensor
    sizes: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, position: int) -> str:
        """The relative name of a file."""
        start = int(self.ends[position - 1]) if position else 0
        return os.fsdecode(self.names[start : int(self.ends[position])].numpy().tobytes())

    def path(self, position: int) -> str:
        return os.path.join(self.folder, self.name(position))

    def with_sizes(self) -> "FileIndex":
        """The same index with file sizes, which are looked up if they are not known yet."""
        if self.sizes is not None:
            return self
        folder = os.fsencode(self.folder)
        sizes = (_size(os.path.join(folder, name)) for name in self._all_names())
        return replace(self, sizes=torch.from_numpy(np.fromiter(sizes, dtype=np.int64, count=len(self))))

    def fingerprint(self) -> dict[str, int | str]:
        """Number of files and classes, and a hash over names and sizes in the index's order, which is sorted."""
        known = self.with_sizes()
        assert known.sizes is not None
        digest = hashlib.sha256()
        for array in (known.names, known.ends, known.labels.long(), known.sizes):
            digest.update(array.numpy().tobytes())
        digest.update(json.dumps(self.classes).encode())
        return {"files": len(self), "classes": len(self.classes), "sha256": digest.hexdigest()}

    def _all_names(self) -> Iterator[bytes]:
        names, start = self.names.numpy().tobytes(), 0
        for end in self.ends.tolist():
            yield names[start:end]
            start = end


def _size(path: bytes) -> int:
    """In bytes; -1 for a file that is gone, such as a link to nothing: ``data.broken`` says what happens to that."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def pack(folder: Path, classes: list[str], entries: Iterable[tuple[int, list[str]]]) -> FileIndex:
    """Build an index from groups of file names, each group with its label; only one group is held as a list."""
    names, lengths, labels = bytearray(), [], []
    for label, group in entries:
        encoded = [os.fsencode(name) for name in group]
        names += b"".join(encoded)
        lengths.append(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)))
        labels.append(np.full(len(encoded), label, dtype=np.int32))
    return FileIndex(
        folder,
        classes,
        torch.from_numpy(np.concatenate(labels)),
        torch.frombuffer(names, dtype=torch.uint8),
        torch.from_numpy(np.cumsum(np.concatenate(lengths))),
    )


def scan_class_folders(folder: Path) -> FileIndex:
    """Index a folder that has one folder of pictures for each class, sorted by class and name.

    Raises:
        FileNotFoundError: there is no class folder.
        DataError: a class folder has no picture.
    """
    classes = sorted(entry.name for entry in visible_entries(folder) if entry.is_dir())
    if not classes:
        raise FileNotFoundError(f"{folder} has no class folders; expected {folder}/<class>/<picture>.jpg")

    passed_over: Counter[str] = Counter()

    def groups() -> Iterator[tuple[int, list[str]]]:
        for label, name in enumerate(classes):
            files = sorted(list_pictures(folder, name, passed_over))
            if not files:
                raise DataError(
                    f"{folder / name} has no pictures ({', '.join(PICTURE_ENDINGS)}); add some or remove the folder"
                )
            yield label, files

    index = pack(folder, classes, groups())
    warn_of_passed_over(folder, passed_over)
    return index


def list_pictures(folder: Path, below: str = "", passed_over: Counter[str] | None = None) -> Iterator[str]:
    """Names, relative to ``folder``, of all pictures in its folder ``below``; hidden files are left out.

    Args:
        folder: the folder that the names are relative to.
        below: the folder that is looked through, relative to it.
        passed_over: counts the files with other endings, by ending.

    Raises:
        DataError: folders that contain themselves through a link.
    """
    yield from _list(folder, below, Counter() if passed_over is None else passed_over, ())


def _list(folder: Path, below: str, passed_over: Counter[str], around: tuple[tuple[int, int], ...]) -> Iterator[str]:
    status = os.stat(folder / below)
    here = (status.st_dev, status.st_ino)
    if here in around:
        raise DataError(f"{folder / below} is a link to a folder that it lies in; remove the link")
    for entry in visible_entries(folder / below):
        name = f"{below}/{entry.name}" if below else entry.name
        if entry.is_dir():
            yield from _list(folder, name, passed_over, (*around, here))
        elif entry.name.lower().endswith(PICTURE_ENDINGS):
            yield name
        else:
            passed_over[os.path.splitext(entry.name)[1].lower() or "without ending"] += 1


def warn_of_passed_over(folder: Path, passed_over: Counter[str]) -> None:
    """One line, on the first rank alone."""
    if passed_over and os.environ.get("RANK", "0") == "0":
        kinds = ", ".join(f"{number} {ending}" for ending, number in passed_over.most_common(5))
        number = passed_over.total()
        logger.warning("%s: %d files without a picture's ending are passed over (%s)", folder, number, printable(kinds))


def index_file(folder: Path) -> Path:
    """Where the stored index of a folder lies: beside it."""
    return folder.with_name(folder.name + ".index.npz")


def save_index(index: FileIndex) -> Path:
    """Write an index with its file sizes beside its folder; a reader never sees a half-written file."""
    target = index_file(index.folder)
    known = index.with_sizes()
    assert known.sizes is not None
    header = {
        "version": _VERSION,
        "classes": index.classes,
        "stamps": _stamps(index.folder, _folders(index.folder)),
    }
    with NamedTemporaryFile(dir=target.parent, suffix=".tmp", delete=False) as file:
        try:
            np.savez(
                file,
                header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8),
                labels=known.labels.numpy(),
                names=known.names.numpy(),
                ends=known.ends.numpy(),
                sizes=known.sizes.numpy(),
            )
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(file.name)
            raise
    return target


def load_index(folder: Path) -> FileIndex | None:
    """Read the stored index of a folder, or return None if there is none or it is out of date.

    It is out of date when a folder has been added or removed, or files in one of them have (its time of
    change is not the stored one). Files that were overwritten in place are not noticed.
    """
    path = index_file(folder)
    if not path.exists():
        return None
    try:
        with open_regular(path) as file:
            header, arrays = _read_arrays(file)
        is_current = header["version"] == _VERSION and header["stamps"] == _stamps(folder, header["stamps"])
        if is_current:
            _check_stored(header["classes"], **arrays)
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged files
        reason = printable(" ".join(str(error).split())[:120] or type(error).__name__)
        logger.warning("%s is damaged (%s): reading the folder; write it again with scripts/data.py", path, reason)
        return None
    if not is_current:
        logger.warning("%s is out of date: reading the folder; write it again with scripts/data.py", path)
        return None
    return FileIndex(folder, header["classes"], **{name: torch.from_numpy(array) for name, array in arrays.items()})


def _read_arrays(file: IO[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """No more memory than the file is long: its arrays are stored, not compressed."""
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("compressed")
    file.seek(0)
    with np.load(file) as stored:
        header = json.loads(stored["header"].tobytes())
        return header, {name: stored[name] for name in ("labels", "names", "ends", "sizes")}


def _check_stored(
    classes: Any, labels: NDArray[Any], names: NDArray[Any], ends: NDArray[Any], sizes: NDArray[Any]
) -> None:
    """Raises a ValueError for what ``save_index`` never writes: a stored index is a file that others can have made."""
    kinds = [(labels, np.int16, np.int32), (names, np.uint8), (ends, np.int64), (sizes, np.int64)]
    if any(array.ndim != 1 or array.dtype not in allowed for array, *allowed in kinds):
        raise ValueError("arrays of another kind")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ValueError("classes that are no list of names")
    if not len(labels) == len(ends) == len(sizes) > 0:
        raise ValueError("arrays of different lengths")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise ValueError("a label out of range")
    starts = np.concatenate([[0], ends[:-1]])
    if (starts >= ends).any() or ends[-1] != len(names):
        raise ValueError("names of wrong lengths")
    text = names.tobytes()
    if (names[starts] == ord("/")).any() or b"\0" in text:
        raise ValueError("a name that leads out of the folder")
    if b".." in text:
        parts = (text[start:end].split(b"/") for start, end in zip(starts.tolist(), ends.tolist(), strict=True))
        if any(b".." in part for part in parts):
            raise ValueError("a name that leads out of the folder")


def _stamps(folder: Path, folders: Iterable[str]) -> dict[str, int]:
    """Time of the last change of folders below ``folder``, in nanoseconds; -1 for one that is gone."""
    stamps = {}
    for name in folders:
        try:
            stamps[name] = os.stat(folder / name).st_mtime_ns
        except OSError:
            stamps[name] = -1
    return stamps


def _folders(folder: Path) -> Iterator[str]:
    for below, _, _ in os.walk(folder, followlinks=True):
        yield os.path.relpath(below, folder)


def visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    """Files and folders in a folder, without the hidden ones."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]
