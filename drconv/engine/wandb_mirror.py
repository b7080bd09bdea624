"""Weights & Biases as a mirror of the record: whatever goes wrong with it, the training goes on."""

import netrc
import os
import secrets
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL.Image import Image

from drconv.config import Config
from drconv.files import replace_file
from drconv.results import provenance

START_TIMEOUT_S = 30
Pictures = dict[str, Image]


class WandbMirror:
    """Rank 0 only. The run's id is kept in its folder, so that a resumed run goes on in the same W&B run."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._run: Any = None
        if config.logging.wandb != "disabled":
            self._guard(lambda: self._start(config, folder))

    def log(self, entry: dict[str, Any], split: str) -> None:
        if self._run is not None:
            values = {f"{split}/{key}": value for key, value in entry.items() if key != "step"}
            self._guard(lambda: self._run.log(values, step=entry["step"]))

    def show(self, step: int, make: Callable[[], Pictures]) -> None:
        """Pictures by name, which are made only where somebody looks at them."""
        if self._run is not None:
            self._guard(lambda: self._show(step, make()))

    def _show(self, step: int, pictures: Pictures) -> None:
        import wandb

        self._run.log({name: wandb.Image(picture) for name, picture in pictures.items()}, step=step)

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        if self._run is not None:
            self._guard(lambda: self._run.summary.update(summary))
            self._guard(lambda: self._run.finish(exit_code=exit_code))

    def _start(self, config: Config, folder: Path) -> None:
        import wandb

        mode: str | None = config.logging.wandb
        if mode == "auto":
            # None leaves it to the variable
            mode = None if os.environ.get("WANDB_MODE") else "online" if _has_key() else "offline"
        is_below = folder.is_relative_to(config.outputs)
        self._run = wandb.init(
            project=config.logging.project,
            name=str(folder.relative_to(config.outputs)) if is_below else folder.name,
            id=_run_id(folder / "wandb_id"),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=str(folder),
            config={**asdict(config), "code": provenance.code()},
            settings=wandb.Settings(init_timeout=START_TIMEOUT_S, silent=True, console="off"),
        )

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._run = None
            reason = str(error).strip().split("\n")[0]
            print(f"warning: W&B is off for this run ({type(error).__name__}: {reason}); metrics.jsonl has all values")


def _run_id(path: Path) -> str:
    if not path.exists():
        replace_file(path, secrets.token_hex(8))
    return path.read_text()


def _has_key() -> bool:
    """Whether W&B's own search would find a key: the variable, else its server's entry in the netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    paths = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    try:
        file = next(path for path in (Path(name).expanduser() for name in paths) if path.exists())
        return netrc.netrc(file).authenticators(host) is not None
    except (StopIteration, OSError, netrc.NetrcParseError):
        return False
