"""The folder of a run: owned by one process, bound to one configuration, never overwritten."""

import fcntl
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from drconv.compose import as_yaml, load_config
from drconv.config import Config
from drconv.errors import RunFolderError
from drconv.files import replace_file
from drconv.identity import select_binding

LOCK = "lock"
REPAIR = "overwrite=true starts the run again and keeps the old folder under another name"


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
        if config.overwrite and (self.result.exists() or not self._fits(config)):
            self._set_aside()
        stored = self.path / "config.yaml"
        if stored.exists() and self.is_begun:
            self.compare(config)
        else:
            replace_file(stored, as_yaml(config))
        return self.read_result() if self.result.exists() else None

    @property
    def is_begun(self) -> bool:
        """Whether there is anything that another configuration would spoil."""
        return self.resume.exists() or self.result.exists()

    def compare(self, config: Config) -> None:
        """Raises a RunFolderError that names the keys in which the folder's configuration differs, if there are any."""
        old, new = binding_keys(load_config(self.path)), binding_keys(config)
        differing = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in new if old.get(key) != new[key]]
        if differing:
            raise RunFolderError(
                f"{self.path} was made with another configuration ({'; '.join(differing)}); choose another folder with "
                f"run=, or overwrite=true to set the old one aside"
            )

    def read_result(self) -> dict[str, Any]:
        """The record of the finished run.

        Raises:
            RunFolderError: the file is damaged.
        """
        try:
            result = json.loads(self.result.read_text())
            missing = [key for key in ("metrics", "weights", "weights_sha256") if key not in result]
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self.result} is damaged ({error}); {REPAIR}") from None
        if missing:
            raise RunFolderError(f"{self.result} is damaged (no {missing[0]}); {REPAIR}")
        return result

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take(self) -> None:
        """A POSIX lock: gone with the process, however that ends, and not inherited by its loader processes."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / LOCK, "w")  # noqa: SIM115, closed by close()
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self.close()
                raise RunFolderError(
                    f"another process is training in {self.path}; wait for it, or give this run another folder with "
                    f"run="
                ) from None
            if self._holds_the_path():
                return
            self.close()

    def _holds_the_path(self) -> bool:
        """False where the folder was set aside by another process between opening the file and locking it."""
        assert self._lock is not None
        try:
            return os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self.path / LOCK))
        except FileNotFoundError:
            return False

    def _fits(self, config: Config) -> bool:
        """Whether the run that is not finished can go on: its configuration is the same and its state loads."""
        import torch

        from drconv.engine.checkpoint import load_resume

        if not self.resume.exists():
            return True
        try:
            self.compare(config)
            load_resume(self.resume, torch.device("cpu"))
        except RunFolderError:
            return False
        return True

    def renew(self, config: Config) -> None:
        """Sets the folder aside and begins a new one."""
        self._set_aside()
        replace_file(self.path / "config.yaml", as_yaml(config))

    def _set_aside(self) -> None:
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}.old{number}")).exists():
            number += 1
        self.path.rename(aside)
        self.close()
        self._take()


def check_folder(config: Config) -> None:
    """Raises a RunFolderError where the run's folder has a run of another configuration; takes no lock."""
    folder = RunFolder(Path(str(config.run)))
    is_used = not config.overwrite and not config.runtime.dry_run
    if is_used and folder.is_begun and (folder.path / "config.yaml").exists():
        folder.compare(config)


def binding_keys(config: Config) -> dict[str, Any]:
    """All keys that decide what a run computes, dotted, with their values."""
    return select_binding(asdict(config))
