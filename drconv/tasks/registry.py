"""The tasks by name, with what tables and checks know of them. Imports no torch.

A task from outside the package registers itself in a module of its own, which ``task.module`` names:

    register_task("depth", TaskEntry("my_package.depth", "Depth", Headline("val/rmse", "RMSE", "m"), ("val/rmse",)))
"""

import difflib
import importlib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

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
        metrics: patterns of all that it computes.
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
        ("val/top1", "val/top5", "val/loss", "val/samples", "val/skipped"),
    ),
    "identification": TaskEntry(
        "drconv.tasks.identification",
        "Identification",
        Headline("gallery/rank1", "rank-1", "%"),
        (
            *("gallery/rank1*", "gallery/trials", "gallery/distractors", "*/accuracy*", "*/std", "*/worst_fold"),
            *("*/threshold_*", "*/tar_*", "*/pairs"),
        ),
    ),
    "detection": TaskEntry(
        "drconv.tasks.detection",
        "Detection",
        Headline("val/box_ap", "box AP", "%"),
        tuple(f"{name}/{key}" for name in ("val", "seen") for key in ("box_ap*", "mask_ap*", "pictures", "detections")),
    ),
}


def register_task(name: str, entry: TaskEntry) -> None:
    """Adds a task from outside the package.

    Raises:
        ValueError: another task has this name.
    """
    if TASKS.setdefault(name, entry) != entry:
        raise ValueError(f"a task named {name} is registered already ({TASKS[name].module}); choose another name")


def find_entry(config: TaskConfig) -> TaskEntry:
    """The entry of ``task.name``, after ``task.module`` has been imported.

    Raises:
        ConfigError: no such module or task.
    """
    if config.module is not None and config.name not in TASKS:
        try:
            importlib.import_module(config.module)
        except ImportError as error:
            raise ConfigError(f"task.module={config.module} cannot be imported ({error})") from None
    if config.name not in TASKS:
        near = difflib.get_close_matches(config.name, TASKS, n=2) or list(TASKS)
        raise ConfigError(f"task.name={config.name} is not known; did you mean {' or '.join(near)}?")
    return TASKS[config.name]


def find_task(config: TaskConfig) -> "type[Task]":
    """The class of ``task.name``."""
    entry = find_entry(config)
    return getattr(importlib.import_module(entry.module), entry.name)
