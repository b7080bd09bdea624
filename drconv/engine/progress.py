"""What a user sees while a run goes on: a log line every N steps and, on a terminal, a live bar."""

import resource
import sys
import time
from datetime import timedelta

import torch

BAR_WIDTH = 24
SHOWN = ("loss", "lr", "images_per_second", "data_wait", "memory_gib")  # at their own place in a line
BAR_EVERY_S = 0.2


class Progress:
    """Times the steps of one process. ``data_wait`` is the share of time spent waiting for batches."""

    def __init__(self, num_steps: int, start_step: int, batch_size: int, device: torch.device) -> None:
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.device = device
        self._is_terminal = sys.stdout.isatty()
        self._last_bar = 0.0
        self._mark(start_step)
        self._first = (start_step, time.perf_counter())

    def _mark(self, step: int) -> None:
        self._step, self._time, self._waited = step, time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        self._waited += seconds

    def measure(self, step: int) -> dict[str, float]:
        """Speed, waiting and memory since the last call."""
        seconds = time.perf_counter() - self._time
        measured = {
            "images_per_second": (step - self._step) * self.batch_size / max(seconds, 1e-9),
            "data_wait": self._waited / max(seconds, 1e-9),
            "memory_gib": memory_gib(self.device),
        }
        self._mark(step)
        return measured

    def seconds_left(self, step: int) -> float:
        first_step, first_time = self._first
        done = max(step - first_step, 1)
        return (time.perf_counter() - first_time) / done * (self.num_steps - step)

    def line(self, step: int, entry: dict[str, float]) -> None:
        """One line of the log."""
        left = timedelta(seconds=round(self.seconds_left(step)))
        own = [f"{name} {value:.4g}" for name, value in entry.items() if name not in SHOWN]
        shown = "".join(f"{text}  " for text in own)
        self.say(
            f"step {step}/{self.num_steps}  loss {entry['loss']:.4f}  {shown}lr {entry['lr']:.4g}  "
            f"{entry['images_per_second']:.0f} images/s  data wait {entry['data_wait']:.0%}  "
            f"memory {entry['memory_gib']:.2f} GiB  left {left}"
        )

    def say(self, text: str) -> None:
        """Prints a line without cutting through the bar."""
        if self._is_terminal:
            text = f"\r\033[K{text}"
        print(text, flush=True)

    def bar(self, step: int) -> None:
        """Redraws the live bar, on terminals only."""
        if not self._is_terminal or time.perf_counter() - self._last_bar < BAR_EVERY_S:
            return
        self._last_bar = time.perf_counter()
        filled = BAR_WIDTH * step // self.num_steps
        left = timedelta(seconds=round(self.seconds_left(step)))
        print(f"\r\033[K[{'#' * filled:{BAR_WIDTH}}] {step}/{self.num_steps}  left {left}", end="", flush=True)


def memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the device on CUDA, of the process (loaders excluded) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
