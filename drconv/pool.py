"""Jobs in processes of their own on a pool of devices: in order, each on as many as it needs. Imports no torch."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Self

POLL_S = 0.1
PARENT = "DRCONV_PARENT"  # in the environment of a job: the process that started it
ORPHAN_S = 1.0  # how often a job looks for that
REPEAT_S = 5.0  # a signal that comes again after so long ends the jobs at once


@dataclass
class Job:
    """What to run.

    Attributes:
        number: of the job.
        command: its words.
        needs: devices of the pool that it takes.
        output: file that takes in all that it prints, behind what is there.
        environment: variables added to this process's.
    """

    number: int
    command: list[str]
    needs: int
    output: Path
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Running:
    """A job that was started."""

    job: Job
    devices: list[str]
    process: subprocess.Popen
    begin: float


class Pool:
    """Runs jobs until all have ended or a signal came, which then stops them and is kept in ``received``.

    Args:
        devices: names of the devices, such as "0" and "1".
        variable: of the environment, that tells a job its devices; None where they are mere places.
        started: called with each job and its devices.
        ended: called with each job, its exit code (negative for a signal) and its seconds.
    """

    def __init__(
        self,
        devices: Sequence[str],
        variable: str | None,
        started: Callable[[Job, list[str]], None],
        ended: Callable[[Job, int, float], None],
    ) -> None:
        self.received: signal.Signals | None = None
        self._free = list(devices)
        self._variable = variable
        self._started, self._ended = started, ended
        self._running: list[Running] = []
        self._received_at = 0.0
        self._former: dict[int, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._former[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for running in self._running:  # an error of ours: nobody would wait for them
            _send(running.process, signal.SIGTERM)
        for number, former in self._former.items():
            signal.signal(number, former)  # type: ignore[arg-type]

    def run(self, jobs: Sequence[Job]) -> None:
        """Starts each job as soon as its devices are free, none before those in front of it."""
        waiting = list(jobs)
        while self._running or (waiting and self.received is None):
            while waiting and self.received is None and waiting[0].needs <= len(self._free):
                self._start(waiting.pop(0))
            time.sleep(POLL_S)
            for running in list(self._running):
                if (code := running.process.poll()) is not None:
                    self._running.remove(running)
                    self._free += running.devices
                    self._ended(running.job, code, time.monotonic() - running.begin)

    def _start(self, job: Job) -> None:
        devices, self._free = self._free[: job.needs], self._free[job.needs :]
        own = {self._variable: ",".join(devices)} if self._variable else {}
        job.output.parent.mkdir(parents=True, exist_ok=True)
        with job.output.open("ab") as output:
            process = subprocess.Popen(
                job.command,
                env={**os.environ, **job.environment, **own, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # signals of the terminal reach this process alone, which hands them on once
            )
        self._running.append(Running(job, devices, process, time.monotonic()))
        self._started(job, devices)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """The first signal asks the jobs to save and stop; a later one ends them."""
        first = self.received is None
        if first:
            self.received, self._received_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._received_at < REPEAT_S:
            return
        for running in self._running:
            if first:
                _send(running.process, signal.SIGTERM)
            else:
                os.killpg(running.process.pid, signal.SIGKILL)


def stop_with_parent() -> None:
    """In a job: from now on it is asked to save and stop once the pool's process is gone, killed or not."""
    if parent := os.environ.get(PARENT):
        threading.Thread(target=_stop_without, args=(int(parent),), daemon=True).start()


def _stop_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _send(process: subprocess.Popen, number: signal.Signals) -> None:
    """To the job alone: it tells its ranks and loader processes itself."""
    if process.poll() is None:
        process.send_signal(number)
