"""TensorBoard as a mirror of the record, with the names that W&B has; whatever goes wrong, the training goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from drconv.identity import flatten

FOLDER = "tensorboard"


class TensorBoardMirror:
    """Rank 0 only.

    Args:
        folder: of the run.
        step: that the run goes on from; what an earlier start wrote behind it is hidden.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._writer: Any = None
        self._guard(lambda: self._start(folder, step))

    def log(self, entry: dict[str, Any], split: str) -> None:
        """All numbers of an entry, nested ones under their path; lists of numbers one by one."""
        if self._writer is not None:
            self._guard(lambda: self._log(entry, split))

    def show(self, step: int, make: Callable[[], dict[str, Image]]) -> None:
        """Pictures by name, which are made only where somebody looks at them."""
        if self._writer is not None:
            self._guard(lambda: self._show(step, make()))

    def finish(self, summary: dict[str, Any], exit_code: int = 0) -> None:
        if self._writer is not None:
            self._guard(self._writer.close)

    def _start(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / FOLDER), purge_step=step + 1)

    def _log(self, entry: dict[str, Any], split: str) -> None:
        for key, value in flatten(entry).items():
            values = dict(enumerate(value)) if isinstance(value, list) else {None: value}
            for number, each in values.items():
                name = f"{split}/{key}" if number is None else f"{split}/{key}/{number}"
                if key != "step" and isinstance(each, int | float):
                    self._writer.add_scalar(name, each, entry["step"])

    def _show(self, step: int, pictures: dict[str, Image]) -> None:
        for name, picture in pictures.items():
            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._writer = None
            reason = str(error).strip().split("\n")[0]
            print(f"warning: TensorBoard is off for this run ({type(error).__name__}: {reason}); metrics.jsonl has all")
