"""Trainings as processes of their own session, forked from this one, which has imported all they need.

A fork starts in a fraction of a second where a new interpreter takes ten: hundreds of faults become affordable. This
process itself computes nothing, so that the forked ones begin as new ones would.
"""

import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
END_S = 300  # after which a process that should have ended counts as hanging


class Training:
    """``train.py`` with the given overrides, in a session of its own; its output goes to a file."""

    def __init__(self, overrides: Sequence[str], output: Path, prepare: Callable[[], None] = lambda: None) -> None:
        self.output = output
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become_training(overrides, output, prepare)
        self.code: int | None = None

    def wait(self, seconds: float = END_S) -> int:
        """The exit code, negative for a signal.

        Raises:
            TimeoutError: it has not ended; it is killed.
        """
        end = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                self.signal_session(signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"hangs; its output ends with: {self.last_line()}")
            else:
                time.sleep(0.02)
        return self.code

    def has_ended(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def signal(self, number: int) -> None:
        if not self.has_ended():
            os.kill(self.pid, number)

    def signal_session(self, number: int) -> None:
        """What a terminal or a cluster does: every process of the job gets it."""
        for pid in session_members(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def children(self) -> list[int]:
        return [pid for pid, (parent, _) in _processes().items() if parent == self.pid]

    def left_behind(self, seconds: float = 40) -> list[int]:
        """Processes of the session that are still there some time after the end of the first."""
        end = time.monotonic() + seconds
        while (left := session_members(self.pid)) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def text(self) -> str:
        return self.output.read_text(errors="replace") if self.output.exists() else ""

    def last_line(self) -> str:
        return (self.text().strip().splitlines() or [""])[-1]


def session_members(session: int) -> list[int]:
    """Living processes of a session."""
    return [pid for pid, (_, own) in _processes().items() if own == session]


def _processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process that is no zombie."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                state, parent, _, session = Path("/proc", entry, "stat").read_text().rpartition(") ")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if state not in "ZX":
                found[int(entry)] = (int(parent), int(session))
    return found


def _become_training(overrides: Sequence[str], output: Path, prepare: Callable[[], None]) -> None:
    """Never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["train.py", *overrides]
        prepare()
        from drconv.commands.train import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
