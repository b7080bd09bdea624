"""SIGTERM and Ctrl-C ask a run to save and stop; the ranks stop after the same step."""

import signal
from types import FrameType, TracebackType
from typing import Self

import torch

from drconv.distributed import all_reduce, world_size

# Ranks compare their flags every so many steps: more often would make each step wait for the slowest.
AGREE_EVERY = 10


class StopSignals:
    """While entered, the first SIGTERM or SIGINT sets a flag; a second one acts as usual."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        signal.signal(number, self._former[self.received])  # type: ignore[arg-type]

    def should_stop(self, step: int) -> bool:
        """The same answer on all ranks."""
        if world_size() == 1:
            return self.received is not None
        if step % AGREE_EVERY:
            return False
        return bool(all_reduce(torch.tensor(float(self.received is not None), device=self.device), "max"))
