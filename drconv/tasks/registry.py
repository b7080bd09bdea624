"""The tasks by name, with what tables and checks know of them. Imports no torch.

A task from outside the package registers itself in a module of its own, which ``task.module`` names:

    register_task("depth", TaskEntry("my_package.depth", "Depth", Headline("val/rmse", "RMSE", "m"), ("val/rmse",)))
"""

import difflib
import importlib
import traceback
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drconv.config import TaskConfig
from drconv.errors import ConfigError

if TYPE_CHECKING:
    from drconv.interfaces import Task


@dataclass(frozen=True)
class Headline:
    """The metric that tables show.

    Attributes:
        metric: as records name it, ``<evaluation set>/<name>``.
        label: as tables print it.
        unit: of its values, such as "%".
    """

    metric: str
    label: str
    unit: str


@dataclass(frozen=True)
class TaskEntry:
    """Where a task is and what it computes.

    Attributes:
        module: imported when the task is built.
        name: of the class in it, a ``drconv.interfaces.Task``.
        headline: what tables show.
        metrics: patterns of what it measures, one of which a run can be for; counts of pictures are none.
    """

    module: str
    name: str
    headline: Headline
    metrics: tuple[str, ...]

    def full_name(self, metric: str) -> str | None:
        """The name of a metric in records; a bare one is of the headline's set. None where there is none of it."""
        full = metric if "/" in metric else f"{self.headline.metric.partition('/')[0]}/{metric}"
        return full if any(fnmatchcase(full, pattern) for pattern in self.metrics) else None


TASKS: dict[str, TaskEntry] = {
    "classification": TaskEntry(
        "drconv.tasks.classification",
        "Classification",
        Headline("val/top1", "top-1", "%"),
        ("val/top1", "val/top5", "val/loss"),
    ),
    "identification": TaskEntry(
        "drconv.tasks.identification",
        "Identification",
        Headline("gallery/rank1", "rank-1", "%"),
        (
            *("gallery/rank1*", "*/accuracy*", "*/std", "*/worst_fold"),
            *("*/threshold_*", "*/tar_*"),
        ),
    ),
    "detection": TaskEntry(
        "drconv.tasks.detection",
        "Detection",
        Headline("val/box_ap", "box AP", "%"),
        tuple(f"{name}/{key}" for name in ("val", "seen") for key in ("box_ap*", "mask_ap*")),
    ),
}


def register_task(name: str, entry: TaskEntry) -> None:
    """Adds a task from outside the package.

    Raises:
        ValueError: another task has this name; an entry with a headline or patterns that cannot be meant.
    """
    if not isinstance(entry, TaskEntry):
        raise ValueError(f"the task {name} needs a TaskEntry, not {entry!r}")
    if not isinstance(entry.metrics, tuple) or not all(isinstance(pattern, str) for pattern in entry.metrics):
        raise ValueError(f"metrics={entry.metrics!r} of the task {name} has to be a tuple of patterns: ('val/error',)")
    headline = entry.headline.metric
    if "/" not in headline or entry.full_name(headline) is None:
        raise ValueError(
            f"the headline {headline!r} of the task {name} has to be <evaluation set>/<name> and one of its "
            f"metrics {', '.join(entry.metrics)}"
        )
    if TASKS.setdefault(name, entry) != entry:
        raise ValueError(f"a task named {name} is registered already ({TASKS[name].module}); choose another name")


def find_entry(config: TaskConfig) -> TaskEntry:
    """The entry of ``task.name``, after ``task.module`` has been imported.

    Raises:
        ConfigError: no such module or task.
    """
    if config.module is not None:
        _import(config.module, f"task.module={config.module}")
    if config.name not in TASKS:
        near = difflib.get_close_matches(config.name, TASKS, n=2) or list(TASKS)
        where = "" if config.module is None else f", and {config.module} does not register it"
        raise ConfigError(f"task.name={config.name} is not known{where}; did you mean {' or '.join(near)}?")
    return TASKS[config.name]


def headline_name(config: TaskConfig, metric: str | None = None) -> str:
    """The metric that tables show, ``<evaluation set>/<name>``: the one that an experiment names, else the task's."""
    entry = find_entry(config)
    return (entry.full_name(metric) if metric else None) or entry.headline.metric


def find_task(config: TaskConfig) -> "type[Task]":
    """The class of ``task.name``.

    Raises:
        ConfigError: no such module, task or class, or one that lacks members of ``drconv.interfaces.Task``.
    """
    entry = find_entry(config)
    place = f"task.name={config.name} is registered as {entry.name} of {entry.module}, which"
    found = getattr(_import(entry.module, place), entry.name, None)
    if found is None:
        raise ConfigError(f"{place} has no such class")
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise ConfigError(f"{place} lacks {', '.join(lacking)}; see drconv.interfaces.Task")
    return found


def _import(module: str, named: str) -> Any:
    """A module from outside is somebody's code: whatever it raises, the run ends with the place where it did.

    Raises:
        ConfigError: the import fails or ends the process.
    """
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())
        frames = traceback.extract_tb(error.__traceback__)
        foreign = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
        where = f" in {Path(foreign[-1].filename).name}, line {foreign[-1].lineno}" if foreign else ""
        raise ConfigError(f"{named} cannot be imported ({type(error).__name__}: {reason}{where})") from None
