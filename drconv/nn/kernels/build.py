"""Builds the C++ kernel: one call of the compiler, done once, seen by everybody whole or not at all.

The lock is on an open file that the compiler inherits, and the compiler ends when its parent does: a process that is
killed leaves no compiler behind, and no second build starts beside the first.
"""

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

_LOGGER = logging.getLogger(__name__)
Command = Callable[[Path], list[str]]  # the compiler's, for the file it should write

# Runs a command, and ends it with all that it started when the process that asked for it is gone: the compiler's driver
# could be told so by the system, but not the compiler behind it.
_GUARD = """
import os, signal, subprocess, sys
parent, command = int(sys.argv[1]), sys.argv[2:]
compiler = subprocess.Popen(command, close_fds=False)
while True:
    try:
        sys.exit(compiler.wait(timeout=0.1))
    except subprocess.TimeoutExpired:
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
"""


def cache_folders() -> list[Path]:
    """Where builds may lie, best first: as ``TORCH_EXTENSIONS_DIR`` says, the user's cache, among temporary files."""
    folders = [Path(tempfile.gettempdir()) / f"drconv-{os.getuid()}"]
    with contextlib.suppress(RuntimeError):  # a user without a home
        folders.insert(0, Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "drconv")
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    return [Path(named), *folders] if named else folders


def find_or_build(name: str, command: Command) -> Path:
    """The library ``name``.so from the first cache folder that has it or can be written, where it is built.

    Loading a library runs it, so one is taken from a folder that ``TORCH_EXTENSIONS_DIR`` names, but elsewhere only
    where it belongs to this user or to root.

    Raises:
        OSError: it cannot be built; the first line says why.
    """
    named = os.environ.get("TORCH_EXTENSIONS_DIR")
    libraries = [folder / name / f"{name}.so" for folder in cache_folders()]
    libraries = [
        path for path in libraries if (named and path.parents[1] == Path(named)) or _is_own(*path.parents[:2], path)
    ]
    for library in libraries:
        if os.access(library, os.R_OK):
            return library
        if (lock := _open_lock(library.with_name("flock"))) is not None:
            with lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not library.exists():
                    _compile(command, library, lock)
            return library
    tried = ", ".join(map(str, cache_folders()))
    raise OSError(f"none of the folders {tried} can be written; name one in TORCH_EXTENSIONS_DIR")


def _is_own(*paths: Path) -> bool:
    """Whether only this user or root can have written those of the paths that exist."""
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        except OSError:
            return False
        if status.st_uid not in (0, os.getuid()) or status.st_mode & stat.S_IWOTH:
            return False
    return True


def _open_lock(path: Path) -> IO[str] | None:
    """The open file, or None where its folder belongs to somebody else or cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w")  # closed by the caller
    except OSError:
        return None


def _compile(command: Command, library: Path, lock: IO[str]) -> None:
    """Write the library under another name, then rename it."""
    partial = library.with_suffix(".partial")
    guarded = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command(partial)]
    _LOGGER.warning("compiling the C++ kernel of DRConv, once on this machine: about a minute")
    process = subprocess.Popen(
        guarded,
        pass_fds=[lock.fileno()],
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},  # such as a sanitizer's
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        output, _ = process.communicate()
    except BaseException:  # such as Ctrl-C, which the compiler in its own session does not see
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if process.returncode != 0:
        partial.unlink(missing_ok=True)
        raise OSError(_first_error(output) or f"the compiler ended with {process.returncode}")
    partial.replace(library)


def _first_error(output: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line.lower()), lines[-1] if lines else "")


def compiler() -> list[str]:
    """The C++ compiler, ``CXX`` or ``c++``, with the options that ``CXX`` has.

    Raises:
        OSError: there is none.
    """
    words = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    if shutil.which(words[0]) is None:
        raise OSError(f"there is no C++ compiler {words[0]!r}; install g++ or name yours in CXX")
    return words
