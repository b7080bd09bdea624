"""Resume states: loaded with ``weights_only=True`` and replaced atomically."""

import io
from pathlib import Path
from typing import Any

import torch

from drconv.errors import RunFolderError
from drconv.files import replace_file
from drconv.migrations import SCHEMA, migrate_resume

RESUME_KEYS = ("state", "data", "log")
STATE_KEYS = ("step", "elapsed_s", "task", "optimizer", "scaler", "ema")


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Saves tensors, numbers, strings, lists and dictionaries."""
    content = io.BytesIO()  # in memory first: torch words a full disk as an error of its own archive
    torch.save({"schema": SCHEMA, **state}, content)
    replace_file(path, content.getvalue())


def load_resume(path: Path, device: torch.device) -> dict[str, Any]:
    """Loads a resume state without running code from it.

    Raises:
        RunFolderError: the file is damaged, or is no resume state.
    """
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        saved = migrate_resume(saved)
        missing = [key for key in RESUME_KEYS if key not in saved] + [k for k in STATE_KEYS if k not in saved["state"]]
        if missing:
            raise ValueError(f"no {missing[0]}")
        return saved
    except Exception as error:  # torch raises many kinds for a truncated or foreign file
        reason = str(error).strip().split("\n")[0][:120]
        raise RunFolderError(
            f"{path} is damaged ({type(error).__name__}: {reason}); overwrite=true starts the run again and keeps "
            f"the old folder under another name"
        ) from None
