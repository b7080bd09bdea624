"""What is known of a run from its folder, without torch and in milliseconds: its state, how far it is, how it goes.

``status.json`` holds what no other file says: when the last start was, how long the run is, and how it ended where it
did not finish. Whether somebody computes in the folder is asked of the system, by the lock.
"""

import contextlib
import fcntl
import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drconv.files import open_regular, read_json, replace_file
from drconv.tasks.registry import TASKS

NAME = "status.json"
FINISHED, RUNNING, STALLED, STOPPED, FAILED = "finished", "running", "stalled", "stopped", "failed"
TAIL = 2**19  # bytes of a log that are looked at; an entry with many guides has 20 kB
QUIET_S = 600.0  # and ten intervals between entries: a run that wrote nothing for so long is stalled
SKIPPED = ("wandb", "detections", "multirun", "tensorboard")  # folders that hold no runs


@dataclass(frozen=True)
class RunStatus:
    """One run.

    Attributes:
        folder: of the run.
        state: running, stalled (it computes, but wrote nothing for long), stopped, failed or finished.
        step: that was logged last.
        num_steps: of the whole run; None where it was never started by a version that says so.
        speed: images a second, of the last entry.
        loss: the same.
        metric: the last evaluation's headline as ``name value``; empty before the first.
        seconds_left: of a run that computes.
        reason: why it stopped or failed.
        quiet_s: seconds since the folder was written to.
    """

    folder: Path
    state: str
    step: int = 0
    num_steps: int | None = None
    speed: float | None = None
    loss: float | None = None
    metric: str = ""
    seconds_left: float | None = None
    reason: str = ""
    quiet_s: float = 0.0


def note_start(folder: Path, num_steps: int, batch_size: int, every: int, headline: str) -> None:
    """Says that a run begins or goes on, for ``read_status``."""
    content = {"state": RUNNING, "started": time.time(), "num_steps": num_steps, "batch_size": batch_size}
    replace_file(folder / NAME, json.dumps({**content, "every": every, "headline": headline}))


def note_end(folder: Path, state: str, reason: str) -> None:
    """Says how it ended; a full disk or a folder that is gone keeps it from that, and nothing else."""
    with contextlib.suppress(OSError):
        replace_file(folder / NAME, json.dumps({**_noted(folder), "state": state, "reason": reason}))


def find_runs(place: Path) -> Iterator[Path]:
    """The run folders at or below a folder, sorted."""
    for path, folders, files in os.walk(place):
        if "config.yaml" in files and {"lock", "result.json", NAME} & set(files):
            folders.clear()
            yield Path(path)
        folders[:] = sorted(name for name in folders if name not in SKIPPED and not name.startswith("."))


def read_status(folder: Path) -> RunStatus:
    """What the files of a run say now; damaged ones say nothing."""
    noted, entries = _noted(folder), list(_last_entries(folder / "metrics.jsonl"))
    quiet = time.time() - _last_written(folder)
    if (folder / "result.json").exists():
        return _finished(folder, quiet)
    trained = next((entry for entry in entries if entry["split"] == "train"), {})
    step, speed, batch = trained.get("step", 0), trained.get("images_per_second"), noted.get("batch_size")
    state, reason = noted.get("state", STOPPED), noted.get("reason", "")
    left = None
    if is_owned(folder):
        interval = noted.get("every", 0) * batch / speed if batch and speed else 0.0
        state = STALLED if quiet > max(QUIET_S, 10 * interval) else RUNNING
        if batch and speed and state == RUNNING:
            left = (noted["num_steps"] - step) * batch / speed
    elif state == RUNNING:
        state, reason = STOPPED, "its process was killed"
    metric = _metric(entries, noted.get("headline", ""))
    return RunStatus(
        folder, state, step, noted.get("num_steps"), speed, trained.get("loss"), metric, left, reason, quiet
    )


def is_owned(folder: Path) -> bool:
    """Whether a process, here or on another machine of the same file system, holds the folder's lock.

    The lock is asked for and not taken, so that a run which starts at this moment is not in the way of anything.
    """
    # struct flock: type, whence, start, length, pid; their order differs between systems
    layout, kind = ("hhqqi4x", 0) if sys.platform == "linux" else ("qqihh", 3)
    fields = [fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0] if sys.platform == "linux" else [0, 0, 0, fcntl.F_WRLCK, 0]
    try:
        with open_regular(folder / "lock") as lock:
            answer = fcntl.fcntl(lock, fcntl.F_GETLK, struct.pack(layout, *fields))
    except OSError:
        return False
    return bool(struct.unpack(layout, answer)[kind] != fcntl.F_UNLCK)


def _finished(folder: Path, quiet: float) -> RunStatus:
    try:
        result = read_json(folder / "result.json")
        task = TASKS.get(result["config"].get("task", {}).get("name", "classification"))
        name = task.headline.metric if task else next(iter(result["metrics"]))
        metric = f"{name} {result['metrics'][name]:.4g}"
        steps, loss = result["steps"], (result.get("train") or {}).get("loss")
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        return RunStatus(folder, FINISHED, reason="result.json cannot be read", quiet_s=quiet)
    return RunStatus(folder, FINISHED, steps, steps, loss=loss, metric=metric, quiet_s=quiet)


def _noted(folder: Path) -> dict[str, Any]:
    try:
        content = read_json(folder / NAME)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _last_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries at the end of a log, last first."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            lines = file.read().split(b"\n")
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int) and "split" in entry:
                yield entry


def _last_written(folder: Path) -> float:
    times = [0.0]
    for name in ("metrics.jsonl", "resume.pt", "result.json", NAME):
        with contextlib.suppress(OSError):
            times.append((folder / name).stat().st_mtime)
    return max(times)


def _metric(entries: list[dict[str, Any]], headline: str) -> str:
    """Of the last evaluation of the headline's set; without one, of any."""
    split, _, name = headline.partition("/")
    for entry in entries:
        if entry["split"] != "train" and entry["split"] == (split or entry["split"]):
            name = name or next((key for key in entry if key not in ("step", "split")), "")
            if isinstance(entry.get(name), int | float):
                return f"{entry['split']}/{name} {entry[name]:.4g}"
    return ""
