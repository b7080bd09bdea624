"""SIGTERM, Ctrl-C and the end of a terminal ask a run to save and stop; the ranks stop after the same step."""

import signal
import time
from types import FrameType, TracebackType
from typing import Self

import torch

from drconv.distributed import all_reduce, world_size

# Ranks compare their flags about so often: more often would make each step wait for the slowest, and less often would
# leave too little of the 30 s that torch's launcher and SLURM give a process between SIGTERM and SIGKILL.
AGREE_EVERY_S = 2.0
AGREE_EVERY = 10  # steps or evaluation batches, where they are fast
# One request arrives twice at a rank: with its process group, and handed on by the launcher.
REPEAT_S = 5.0


class StopSignals:
    """While entered, the first of these signals sets a flag; one that comes more than 5 s later acts as usual."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.received: signal.Signals | None = None
        self._received_at = 0.0
        self._former: dict[signal.Signals, object] = {}
        self._calls = self._calls_left = 1  # of should_stop() from one agreement to the next
        self._agreed_at = time.monotonic()

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks
                self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._received_at > REPEAT_S:
            signal.signal(number, self._former[signal.Signals(number)])  # type: ignore[arg-type]
            signal.raise_signal(number)

    def should_stop(self) -> bool:
        """The same answer on all ranks, which must all call it after the same steps and evaluation batches."""
        if world_size() == 1:
            return self.received is not None
        self._calls_left -= 1
        if self._calls_left:
            return False
        seconds = (time.monotonic() - self._agreed_at) / self._calls
        here = torch.tensor([float(self.received is not None), seconds], device=self.device)
        asked, slowest = all_reduce(here, "max").tolist()
        self._calls = self._calls_left = max(1, min(AGREE_EVERY, int(AGREE_EVERY_S / max(slowest, 1e-6))))
        self._agreed_at = time.monotonic()
        return bool(asked)
