"""Resume states: with a checksum, loaded with ``weights_only=True``, replaced atomically, the last two kept."""

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any

import torch

from drconv.errors import RunFolderError
from drconv.files import open_regular, replace_file
from drconv.migrations import SCHEMA, migrate_resume

RESUME_KEYS = ("state", "data", "log")
CHECKSUM = b"sha256 "  # then 64 hexadecimal digits: the comment of the zip archive that torch.save writes
STATE_KEYS = ("step", "elapsed_s", "task", "optimizer", "scaler", "ema")


KINDS: dict[str, type | tuple[type, ...]] = {  # of what is computed with
    "state.elapsed_s": (int, float),
    "log.sums": dict,
    "log.steps": int,
    "log.counts": dict,
    "log.totals": dict,
    "log.last_entry": dict,
    "log.file": (dict, type(None)),
    "commits": (list, type(None)),
}


def previous_state(path: Path) -> Path:
    """Where the state before the one in ``path`` is kept."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings, lists and dictionaries with a checksum; the state before stays beside it."""
    buffer = io.BytesIO()  # in memory first: torch words a full disk as an error of its own archive
    torch.save({"schema": SCHEMA, **state}, buffer)
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest().encode()
    buffer.seek(-2, os.SEEK_END)  # the comment's length: torch writes none
    buffer.write((len(CHECKSUM) + len(digest)).to_bytes(2, "little") + CHECKSUM + digest)
    replace_file(path, buffer.getbuffer(), former=previous_state(path))


def load_resume(path: Path, device: torch.device) -> tuple[dict[str, Any], str | None]:
    """Loads a resume state without running code from it; the state before, where the last one is damaged or lost.

    Returns:
        The state, and a line that says why the state before was taken, or None.

    Raises:
        RunFolderError: both are damaged, or no resume states.
    """
    try:
        return _load_state(path, device), None
    except (ValueError, OSError) as error:
        finding = f"{path} is damaged ({error})"
    before = previous_state(path)
    try:
        return _load_state(before, device), f"{finding}: going on from {before.name}, the state before it"
    except (ValueError, OSError):
        raise RunFolderError(
            f"{finding}; overwrite=true starts the run again and keeps the old folder under another name"
        ) from None


def _load_state(path: Path, device: torch.device) -> dict[str, Any]:
    """Raises a ValueError or an OSError whose text is one short line."""
    try:
        with open_regular(path) as file:
            _check_sum(file)
            saved = migrate_resume(torch.load(file, map_location=device, weights_only=True))
        missing = [key for key in RESUME_KEYS if key not in saved] + [k for k in STATE_KEYS if k not in saved["state"]]
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        reason = (str(error).strip() or "no details").split("\n")[0][:120]
        raise ValueError(f"{type(error).__name__}: {reason}") from None
    if missing:
        raise ValueError(f"no {missing[0]}")
    if not isinstance(saved["state"]["step"], int) or saved["state"]["step"] < 0:
        raise ValueError(f"step {saved['state']['step']!r}"[:100])
    if strange := [key for key, kind in KINDS.items() if not isinstance(_look_up(saved, key), kind)]:
        raise ValueError(f"{strange[0]} is of another kind")
    return saved


def _look_up(saved: Any, key: str) -> Any:
    for part in key.split("."):
        saved = saved.get(part) if isinstance(saved, dict) else None
    return saved


def _check_sum(file: IO[bytes]) -> None:
    """Compares a state with its checksum; one that was saved without is compared with the archive's own, by record."""
    length = len(CHECKSUM) + 64
    size = os.fstat(file.fileno()).st_size
    file.seek(max(0, size - length))
    comment = file.read()
    if not comment.startswith(CHECKSUM):
        with zipfile.ZipFile(file) as archive:
            if record := archive.testzip():
                raise ValueError(f"the checksum of {record} differs")
        file.seek(0)
        return
    file.seek(0)
    digest, left = hashlib.sha256(), size - length - 2
    while left > 0:
        digest.update(chunk := file.read(min(left, 2**24)))
        left -= len(chunk) or left
    digest.update(b"\0\0")  # the comment's length, as it was when the sum was made
    if digest.hexdigest().encode() != comment[len(CHECKSUM) :]:
        raise ValueError("its sha256 differs")
    file.seek(0)
