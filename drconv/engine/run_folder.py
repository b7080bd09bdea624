"""The folder of a run: owned by one process, bound to one configuration, never overwritten."""

import errno
import fcntl
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from drconv.compose import as_yaml, load_config
from drconv.config import Config
from drconv.errors import RunFolderError
from drconv.files import read_json, remove_leftovers, replace_file
from drconv.identity import select_binding
from drconv.migrations import migrate_config, schema_of

LOCK = "lock"
REPLACED = ("config.yaml", "metrics.jsonl", "model.safetensors", "model_ema.safetensors")  # by a run that begins
REPAIR = "overwrite=true starts the run again and keeps the old folder under another name"


class RunFolder:
    """Opened by rank 0 alone; the other ranks only read ``path``.

    Files: ``config.yaml``, ``metrics.jsonl``, ``resume.pt`` (and ``resume.previous.pt``, the state before it),
    ``model.safetensors`` (and ``model_ema.safetensors``), ``result.json``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None  # file descriptor

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
            RunFolderError: another process owns the folder, it was made with another configuration, or its files are
                not a run's.
        """
        self.refuse_foreign()
        self._take()
        remove_leftovers(self.path)
        if config.overwrite and (self.result.exists() or not self._fits(config)):
            self._set_aside()
        if self.is_begun:
            self.compare(config)
        if not self.is_begun:
            replace_file(self.path / "config.yaml", as_yaml(config))
        elif self.result.exists():
            self.restore_config(config)
        return self.read_result() if self.result.exists() else None

    @property
    def is_begun(self) -> bool:
        """Whether there is anything that another configuration would spoil."""
        return self.has_state or self.result.exists()

    @property
    def has_state(self) -> bool:
        """Whether there is a resume state, or the one before."""
        return any(os.path.lexists(self.path / name) for name in ("resume.pt", "resume.previous.pt"))

    def refuse_foreign(self) -> None:
        """Raises a RunFolderError where files that a run would replace were not written by one."""
        found = [name for name in REPLACED if os.path.lexists(self.path / name)]
        if not found or self.is_begun or os.path.lexists(self.path / LOCK):
            return
        try:
            load_config(self.path)
        except RunFolderError:
            raise RunFolderError(
                f"{self.path} holds {', '.join(found)}, and neither lock nor configuration of a run: they would be "
                f"replaced; choose another folder with run="
            ) from None

    def compare(self, config: Config) -> None:
        """Raises a RunFolderError that names the keys in which the folder's configuration differs, if there are any.

        Without its ``config.yaml`` a finished run is known by its record. The configuration in a resume state is
        compared when that is loaded (``compare_keys``).
        """
        if (self.path / "config.yaml").exists():
            self.compare_keys(binding_keys(load_config(self.path)), config)
        elif self.result.exists():
            result = self.read_result()
            if isinstance(result.get("config"), dict):
                recorded = migrate_config(result["config"], schema_of(result))
                self.compare_keys(select_binding(recorded), config)

    def compare_keys(self, old: dict[str, Any], config: Config) -> None:
        """As ``compare``, with the keys that were stored."""
        new = binding_keys(config)
        differing = [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in new if old.get(key) != new[key]]
        if differing:
            self._refuse("; ".join(differing))

    def restore_config(self, config: Config) -> None:
        """Writes a ``config.yaml`` that was lost, once the resume state has been compared with the configuration."""
        if not (self.path / "config.yaml").exists():
            replace_file(self.path / "config.yaml", as_yaml(config))

    def _refuse(self, difference: str) -> NoReturn:
        raise RunFolderError(
            f"{self.path} was made with another configuration ({difference}); choose another folder with run=, or "
            f"overwrite=true to set the old one aside"
        )

    def read_result(self) -> dict[str, Any]:
        """The record of the finished run.

        Raises:
            RunFolderError: the file is damaged.
        """
        try:
            result = read_json(self.result)
            missing = [key for key in ("metrics", "weights", "weights_sha256") if key not in result]
            schema_of(result)
        except (ValueError, TypeError, AttributeError, OSError) as error:
            raise RunFolderError(f"{self.result} is damaged ({error}); {REPAIR}") from None
        if missing:
            raise RunFolderError(f"{self.result} is damaged (no {missing[0]}); {REPAIR}")
        if not _is_plausible(result):
            raise RunFolderError(f"{self.result} is damaged (metrics or weights of another kind); {REPAIR}")
        return result

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def is_owned(self) -> bool:
        """Whether this process holds the folder, and nobody has removed the lock."""
        return self._lock is not None and self._holds_the_path()

    def check_owned(self) -> None:
        """Before each write: whoever has lost the lock stops.

        Raises:
            RunFolderError: the lock file was removed or replaced, so that another process can have taken the folder.
        """
        if self._lock is not None and not self._holds_the_path():
            raise RunFolderError(
                f"{self.path / LOCK} was removed or replaced while this process trained, so another one may train "
                f"there: nothing more is written; the same command continues from the last state"
            )

    def _take(self) -> None:
        """A POSIX lock: gone with the process, however that ends, and not inherited by its loader processes."""
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._open_lock()
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                self.close()
                raise RunFolderError(
                    f"another process is training in {self.path}; wait for it, or give this run another folder with "
                    f"run="
                ) from None
            except OSError as error:
                self.close()
                raise RunFolderError(
                    f"{self.path} cannot be locked ({error.strerror}); choose a folder on another file system with run="
                ) from None
            if self._holds_the_path():
                return
            self.close()

    def _open_lock(self) -> int:
        """Raises a RunFolderError where a link, a pipe or a folder has the lock's name."""
        lock = self.path / LOCK
        try:
            number = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise
            raise RunFolderError(f"{lock} is not a regular file; remove it") from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise RunFolderError(f"{lock} is not a regular file; remove it")
        return number

    def _holds_the_path(self) -> bool:
        """False where the folder was set aside by another process between opening the file and locking it."""
        assert self._lock is not None
        try:
            return os.path.samestat(os.fstat(self._lock), os.lstat(self.path / LOCK))
        except OSError:
            return False

    def _fits(self, config: Config) -> bool:
        """Whether the run that is not finished can go on: its configuration is the same and its state loads."""
        import torch

        from drconv.engine.checkpoint import load_resume

        if not self.has_state:
            return True
        try:
            self.compare(config)
            saved, _ = load_resume(self.resume, torch.device("cpu"))
            self.compare_keys(select_binding(saved.get("config", asdict(config))), config)
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
    """Raises a RunFolderError where the run's folder has a run of another configuration, or no run; takes no lock."""
    folder = RunFolder(Path(str(config.run)))
    if not config.runtime.dry_run:
        folder.refuse_foreign()
    is_used = not config.overwrite and not config.runtime.dry_run
    if is_used and folder.is_begun:
        folder.compare(config)


def _is_plausible(result: dict[str, Any]) -> bool:
    """Whether a record has what is looked up in it: numbers by name, and the hash of the weights it names."""
    metrics, hashes = result["metrics"], result["weights_sha256"]
    return (
        isinstance(metrics, dict)
        and bool(metrics)
        and all(isinstance(value, int | float | None) for value in metrics.values())
        and isinstance(hashes, dict)
        and isinstance(result["weights"], str)
        and isinstance(hashes.get(result["weights"]), str)
    )


def binding_keys(config: Config) -> dict[str, Any]:
    """All keys that decide what a run computes, dotted, with their values."""
    return select_binding(asdict(config))
