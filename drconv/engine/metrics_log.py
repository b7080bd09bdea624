"""``metrics.jsonl``: one JSON object a line, the record of a run's curves."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from drconv.files import append_line, open_regular, replace_file, sync_folder, without_infinities


class MetricsLog:
    """Appends entries; a resumed run first drops those that it will write again.

    Args:
        path: the file.
        saved: its length and checksum when the state was saved, from ``sync``; None where the state has none.
        start_step: of the saved state.
        evaluates_first: whether the evaluation of that step comes again: the state after the last step is saved before
            its evaluation, and a state can be saved inside one.

    Attributes:
        is_damaged: whether entries that were there when the state was saved are gone or changed. Those that can be
            read are kept.
    """

    def __init__(self, path: Path, saved: dict[str, Any] | None, start_step: int, evaluates_first: bool) -> None:
        self.path = path
        content = _read(path)
        whole = content[: saved["bytes"]] if saved is not None else b""
        self.is_damaged = saved is not None and hashlib.sha256(whole).hexdigest() != saved["sha256"]
        if saved is None or self.is_damaged:
            lines = (line for line in content.split(b"\n") if _belongs(line, start_step, evaluates_first))
            whole = b"".join(line + b"\n" for line in lines)
        if os.path.lexists(path) and (whole != content or path.is_symlink() or not path.is_file()):
            replace_file(path, whole)
        self._bytes, self._digest = len(whole), hashlib.sha256(whole)

    def append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(without_infinities(entry), allow_nan=False).encode()
        append_line(self.path, line)
        self._bytes += len(line) + 1
        self._digest.update(line + b"\n")

    def sync(self) -> dict[str, Any]:
        """Writes the file through to the disk; its length and checksum, for the state that is saved with it."""
        if self._bytes:
            with open_regular(self.path) as file:
                os.fsync(file.fileno())
            sync_folder(self.path.parent)
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


def _read(path: Path) -> bytes:
    """Nothing where there is no file, or something else under its name."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError:
        return b""


def _belongs(line: bytes, start_step: int, evaluates_first: bool) -> bool:
    """Whether a line is a whole entry from before the saved state."""
    try:
        entry = json.loads(line)
        step, split = entry["step"], entry["split"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return False
    if not isinstance(step, int) or not isinstance(split, str) or step > start_step:
        return False
    return step < start_step or split == "train" or not evaluates_first
