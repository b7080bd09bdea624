"""Files that are either whole or untouched, and reading of files that somebody else may have put there."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

TEMPORARY = ".{name}.{number}.tmp"
MAX_JSON = 2**28  # bytes; the largest record so far has 60 kB


def replace_file(path: Path, content: bytes | memoryview | str, former: Path | None = None) -> None:
    """Writes under a temporary name, then renames: a crash or a full disk leaves the former file as it was.

    The temporary file is a new one with a drawn name: a link that somebody put in its place is not followed. The
    former file stays under the name ``former``, if one is given.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, former) as temporary, open(temporary, "xb", opener=_open_without_links) as file:
        file.write(data)


@contextlib.contextmanager
def replacing(path: Path, former: Path | None = None) -> Iterator[Path]:
    """A new name beside ``path`` for the block to write to, which takes the place of ``path`` when it ends well.

    What stood there stays under the name ``former``, if one is given.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if former is not None:  # last of all: as long as both names are of one file, damage to it is damage to both
            keep_copy(path, former)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Waits while another process is inside with the same lock file; the lock goes with its process.

    File systems without locks let everybody in, so what is done inside must end in a rename all the same.
    """
    number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(number, fcntl.LOCK_EX)
        yield
    finally:
        os.close(number)


def temporary_beside(path: Path) -> Path:
    """A drawn name, so that no two processes write to one file; ``remove_leftovers`` knows its form."""
    return path.with_name(TEMPORARY.format(name=path.name, number=secrets.token_hex(4)))


def keep_copy(path: Path, copy: Path) -> None:
    """Gives a file a second name, under which it stays when it is replaced; ``path`` exists at every moment."""
    if not path.exists():
        return
    temporary = temporary_beside(copy)
    try:
        os.link(path, temporary, follow_symlinks=False)
    except OSError:  # file systems without hard links
        os.replace(path, copy)
        return
    try:
        os.replace(temporary, copy)
    finally:
        temporary.unlink(missing_ok=True)  # of two names of one file a rename leaves both


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of processes that were killed; for the owner of a folder alone."""
    for path in folder.glob(TEMPORARY.format(name="*", number="*")):
        with contextlib.suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """A rename outlives a power failure once its folder has been written."""
    with contextlib.suppress(OSError):  # file systems that cannot
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a regular file for reading.

    Raises:
        OSError: there is none, or it is a pipe, socket or device, which could make a reader wait for ever.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise OSError("not a regular file")
    return open(number, "rb")


def check_writable(folder: Path) -> None:
    """Makes a folder where there is none, and a file in it for a moment: before hours of work for what it shall hold.

    Raises:
        OSError: either is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    with TemporaryFile(dir=folder):
        pass


def append_line(path: Path, line: bytes) -> None:
    """Appends to a regular file, which is made where there is none; links are not followed."""
    with open(path, "ab", opener=_open_without_links) as file:
        file.write(line + b"\n")


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file.

    Raises:
        ValueError: it has more than ``limit`` bytes.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit} bytes")
    return content


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is no JSON, nested too deeply or implausibly large.
        OSError: it cannot be read.
    """
    try:
        return json.loads(read_bounded(path, MAX_JSON))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def file_hash(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_infinities(content: Any) -> Any:
    """JSON has no infinity and no NaN: such numbers become null. A validation loss can be infinite in the first steps,
    when batch norm's running statistics lag behind."""
    if isinstance(content, dict):
        return {key: without_infinities(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_infinities(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def _open_without_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
