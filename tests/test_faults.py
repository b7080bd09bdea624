"""A slice of the faults in ``tests/faults``: real processes, each compared with the undisturbed run bit by bit."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SLICE = ("kill -9", "SIGTERM to all processes", "failing rename", "flipped bit in the state", "deleted lock")


def test_nothing_is_lost() -> None:
    command = [sys.executable, "-m", "tests.faults", "--count", str(len(SLICE)), "--kinds", *SLICE]
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert outcome.returncode == 0, outcome.stderr[-3000:]
    assert "| all | 5 |" in outcome.stdout
