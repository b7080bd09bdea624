"""The folder of a run: owned by one process, bound to one configuration, never overwritten."""

import fcntl
import json
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from drconv.cli import as_yaml, load_config
from drconv.config import Config
from drconv.errors import RunFolderError
from drconv.files import replace_file
from drconv.results.identity import select_binding

LOCK = "lock"


class RunFolder:
    """Opened by rank 0 alone; the other ranks only read ``path``.

    Files: ``config.yaml``, ``metrics.jsonl``, ``resume.pt``, ``model.safetensors`` (and ``model_ema.safetensors``),
    ``result.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_lock": None}

    @property
    def resume(self) -> Path:
        return self.path / "resume.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    def weights(self, kind: str) -> Path:
        """``last`` or ``ema``."""
        return self.path / ("model.safetensors" if kind == "last" else f"model_{kind}.safetensors")

    def open(self, config: Config) -> dict[str, Any] | None:
        """Takes the folder and writes the configuration.

        Returns:
            The result of a run that is already complete, else None.

        Raises:
            RunFolderError: another process owns the folder, or it was made with another configuration.
        """
        self._take()
        if config.overwrite and any(path.name != LOCK for path in self.path.iterdir()):
            self._set_aside()
        stored = self.path / "config.yaml"
        if stored.exists():
            _compare(stored, config)
        else:
            replace_file(stored, as_yaml(config))
        if self.result.exists():
            return json.loads(self.result.read_text())
        return None

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        """A POSIX lock: gone with the process, however that ends, and not inherited by its loader processes."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.path / LOCK, "w")  # noqa: SIM115, closed by close()
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self.close()
            raise RunFolderError(
                f"another process is training in {self.path}; wait for it, or give this run another folder with run="
            ) from None

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        self.path.rename(aside)
        self.close()
        self._take()


def binding_keys(config: Config) -> dict[str, Any]:
    """All keys that decide what a run computes, dotted, with their values."""
    return select_binding(asdict(config))


def _compare(stored: Path, config: Config) -> None:
    old, new = binding_keys(load_config(stored.parent)), binding_keys(config)
    differing = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in new if old.get(key) != new[key]]
    if differing:
        raise RunFolderError(
            f"{stored.parent} was made with another configuration ({'; '.join(differing)}); choose another folder with "
            f"run=, or overwrite=true to set the old one aside"
        )
