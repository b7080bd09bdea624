"""What a user sees while a run goes on: a line every N steps, and between them a live bar, or a line now and then."""

import resource
import sys
import time
from datetime import timedelta

import torch

BAR_WIDTH = 24
SHOWN = ("loss", "lr", "images_per_second", "data_wait", "memory_gib")  # at their own place in a line
BAR_EVERY_S = 0.2
LINE_EVERY_S = 30.0  # where there is no terminal


class Progress:
    """Times the steps of one process. ``data_wait`` is the share of time spent waiting for batches."""

    def __init__(self, num_steps: int, start_step: int, batch_size: int, device: torch.device) -> None:
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.device = device
        self._is_terminal = sys.stdout.isatty()
        self._last_shown = time.perf_counter()
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
        self._last_shown = time.perf_counter()

    def bar(self, step: int) -> None:
        """Shows how far the steps are and how fast: a bar on terminals, elsewhere a line where there was none."""
        if not self._is_due():
            return
        seconds = max(time.perf_counter() - self._first[1], 1e-9)
        speed = (step - self._first[0]) * self.batch_size / seconds
        left = timedelta(seconds=round(self.seconds_left(step)))
        self._show(step, self.num_steps, f"{speed:.0f} images/s  left {left}", "step")

    def evaluation_bar(self, batch: int, num_batches: int) -> None:
        """The same for the batches of an evaluation."""
        if self._is_due():
            self._show(min(batch, num_batches), num_batches, "", "evaluation batch")

    def _is_due(self) -> bool:
        return time.perf_counter() - self._last_shown >= (BAR_EVERY_S if self._is_terminal else LINE_EVERY_S)

    def _show(self, done: int, total: int, text: str, unit: str) -> None:
        if self._is_terminal:
            bar = "#" * (BAR_WIDTH * done // max(total, 1))
            print(f"\r\033[K[{bar:{BAR_WIDTH}}] {unit} {done}/{total}  {text}".rstrip(), end="", flush=True)
        else:
            print(f"{unit} {done}/{total}  {text}".rstrip(), flush=True)
        self._last_shown = time.perf_counter()


def memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the device on CUDA, of the process (loaders excluded) on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
