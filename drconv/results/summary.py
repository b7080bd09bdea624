"""Runs that differ in nothing but the seed, their mean and spread, and differences paired by seed. Imports no torch."""

import hashlib
import json
import statistics
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

from drconv.identity import flatten, is_within
from drconv.results.experiments import Experiments
from drconv.results.read_records import Record

# Runs are compared that are equal in these sections and keys of the configuration, ...
COMPARED = ("task", "recipe", "data", "weights", "backbone", "runtime.precision", "runtime.sync_bn")
# ... leaving out names, and what acts on guides alone.
NAMES = ("recipe.name", "recipe.note", "data.root")
OF_GUIDES = ("recipe.optimizer.guide_lr", "recipe.optimizer.guide_weight_decay")


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n numbers; the deviation of one number is None."""

    mean: float
    deviation: float | None
    count: int


@dataclass(frozen=True)
class Group:
    """Records of one experiment with one configuration, by seed."""

    id: str
    changes: tuple[str, ...]  # what differs from the experiment file, as key=value; none for a run as the file says
    records: list[Record]

    @property
    def name(self) -> str:
        return " ".join([self.id, *self.changes])


def compute_spread(values: list[float]) -> Spread:
    """Mean and sample standard deviation (n - 1)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def group_records(records: list[Record], experiments: Experiments) -> list[Group]:
    """Groups by experiment, changes against its file, and data; rows that share a run are one experiment."""
    found: dict[tuple[str, tuple[str, ...], str], list[Record]] = defaultdict(list)
    for record in records:
        changes = tuple(experiments.differences(record.content["config"], record.id))
        found[experiments.run_of(record.id), changes, _fingerprint(record)].append(record)
    num_data_sets = Counter((id, changes) for id, changes, _ in found)
    groups = []
    for (id, changes, fingerprint), members in sorted(found.items()):
        if num_data_sets[id, changes] > 1:
            changes = (*changes, f"data={hashlib.sha256(fingerprint.encode()).hexdigest()[:8]}")
        groups.append(Group(id, changes, sorted(members, key=lambda record: record.seed)))
    return groups


def pair_by_seed(group: Group, baseline: Group) -> Spread | None:
    """Spread of the differences group - baseline over the seeds that both have, or None without any."""
    reference = {record.seed: record.value for record in baseline.records}
    differences = [record.value - reference[record.seed] for record in group.records if record.seed in reference]
    return compute_spread(differences) if differences else None


def find_baseline(group: Group, id: str, groups: list[Group]) -> Group | None:
    """The runs of experiment ``id``, network as its file says, on the same data with the same recipe as ``group``."""
    wanted = _training(group.records[0])
    return next((other for other in groups if other.id == id and _is_baseline(other, wanted)), None)


def _is_baseline(group: Group, training: dict[str, Any]) -> bool:
    changed = [change.partition("=")[0] for change in group.changes]
    own_network = all(key in NAMES or _is_compared(key) for key in changed)
    return own_network and _training(group.records[0]) == training


def _training(record: Record) -> dict[str, Any]:
    kept = {key: value for key, value in flatten(record.content["config"]).items() if _is_compared(key)}
    return kept | {"steps": record.content["steps"], "fingerprint": _fingerprint(record)}


def _is_compared(key: str) -> bool:
    return is_within(key, COMPARED) and key not in (*NAMES, *OF_GUIDES)


def _fingerprint(record: Record) -> str:
    return json.dumps(record.content["data"], sort_keys=True)
