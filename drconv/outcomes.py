"""How the jobs of a sweep ended: each leaves a file, and whoever started them shows a table. Imports no torch."""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from drconv.config import Config
from drconv.errors import StoppedError
from drconv.files import read_json, replace_file
from drconv.messages import one_line
from drconv.tasks.registry import headline_name

FOLDER = "DRCONV_OUTCOMES"  # in the environment of a sweep's jobs: the folder of their files
STATES = FINISHED, SKIPPED, STOPPED, NOT_STARTED, FAILED = (
    *("finished", "was finished", "stopped", "not started", "failed"),
)


class Projection(float):
    """What a dry run found: the seconds that the run would take, with what else a plan needs."""

    def __new__(cls, seconds: float, num_devices: int = 1, memory_gib: float = 0.0) -> Self:
        self = super().__new__(cls, seconds)
        self.num_devices, self.memory_gib = num_devices, memory_gib
        return self

    num_devices: int
    memory_gib: float

    @property
    def device_hours(self) -> float:
        return self * self.num_devices / 3600

    def __str__(self) -> str:
        time = timedelta(seconds=round(self))
        return f"would take {time}, {self.device_hours:.2f} device-hours, {self.memory_gib:.2f} GiB"


@dataclass
class Outcome:
    """One job: what was typed for it, how it ended, what it gave or why it failed."""

    number: int
    overrides: list[str]
    state: str = FAILED
    text: str = ""
    seconds: float = 0.0
    device_hours: float = 0.0  # of a dry run
    value: Any = field(default=None, compare=False)
    config: Config | None = field(default=None, compare=False)

    def begin(self, config: Config) -> None:
        """Keeps what the result will be worded by, and whether there is one already."""
        self.config = config
        if (Path(str(config.run)) / "result.json").exists() and not (config.overwrite or config.runtime.dry_run):
            self.state = SKIPPED

    def finish(self) -> None:
        """Words the value."""
        self.state = SKIPPED if self.state == SKIPPED else FINISHED
        if isinstance(self.value, Projection):
            self.text, self.device_hours = str(self.value), self.value.device_hours
        elif isinstance(self.value, float) and self.config is not None:
            self.text = f"{headline_name(self.config.task, self.config.experiment.metric)} {self.value:.6g}"


@contextmanager
def describe_job(number: int, overrides: list[str]) -> Iterator[Outcome]:
    """Context of a job, which sets ``value``; writes its file where a sweep asked for one."""
    outcome = Outcome(number, list(overrides))
    begin = time.monotonic()
    try:
        yield outcome
        outcome.finish()
    except BaseException as error:
        outcome.state = STOPPED if isinstance(error, StoppedError | KeyboardInterrupt) else FAILED
        outcome.text = one_line(error) or f"{type(error).__name__}: {error}"
        raise
    finally:
        outcome.seconds = time.monotonic() - begin
        if folder := os.environ.get(FOLDER):
            content = {key: value for key, value in asdict(outcome).items() if key not in ("value", "config")}
            replace_file(Path(folder) / f"{number}.json", json.dumps(content))


def read_outcomes(folder: Path) -> list[Outcome]:
    """The outcomes that jobs have left, by number."""
    return sorted((Outcome(**read_json(path)) for path in folder.glob("*.json")), key=lambda item: item.number)


class Outcomes:
    """While entered, jobs that this process starts leave their outcomes."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # one that other machines see, too
        self._folder = tempfile.TemporaryDirectory(prefix="jobs-", dir=folder)
        self._former = os.environ.get(FOLDER)

    def __enter__(self) -> Self:
        os.environ[FOLDER] = self._folder.name
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.environ.pop(FOLDER)
        if self._former is not None:
            os.environ[FOLDER] = self._former
        self._folder.cleanup()

    @property
    def reasons(self) -> list[str]:
        """Of all jobs that failed."""
        return [outcome.text for outcome in read_outcomes(Path(self._folder.name)) if outcome.state == FAILED]

    def show(self) -> None:
        """Prints the table of the jobs, if there are any."""
        if found := read_outcomes(Path(self._folder.name)):
            print("\n" + "\n".join(table(found)), flush=True)


def table(outcomes: Iterable[Outcome]) -> Iterator[str]:
    """Lines: number, what differs between the jobs, state, time, result or reason."""
    outcomes = list(outcomes)
    names = name_jobs([outcome.overrides for outcome in outcomes])
    width = max(map(len, names))
    counts = [(state, sum(outcome.state == state for outcome in outcomes)) for state in STATES]
    yield "jobs: " + ", ".join(f"{count} {state}" for state, count in counts if count)
    for outcome, name in zip(outcomes, names, strict=True):
        took = str(timedelta(seconds=round(outcome.seconds)))
        yield f"  {outcome.number:>3}  {name:{width}}  {outcome.state:12}  {took:>8}  {outcome.text}".rstrip()
    if hours := sum(outcome.device_hours for outcome in outcomes):
        yield f"all together: {hours:.2f} device-hours"


def name_jobs(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Of each job's overrides those that not all jobs have."""
    common = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(part for part in overrides if part not in common) for overrides in jobs]


def is_sweep() -> bool:
    """Whether this process runs a job of a sweep."""
    return FOLDER in os.environ
