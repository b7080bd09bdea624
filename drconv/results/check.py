"""What is wrong with records and pages, one line each. Imports no torch."""

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from drconv.identity import config_hash, select_binding
from drconv.migrations import schema_of
from drconv.results.collect import check_weights, find_results, round_floats
from drconv.results.costs import cost_problems
from drconv.results.read_records import Record, RecordError, read_curve, read_record
from drconv.results.render import render_pages
from drconv.results.sources import Sources, unshown_records
from drconv.results.tables import make_tables

RECORD_LINK = re.compile(r"\]\(([\w./-]*runs/[^)\s]+\.json)\)")
SHOWN = 100  # characters of a differing line


def find_problems(root: Path, sources: Sources, folders: Iterable[Path]) -> list[str]:
    """All problems of the records in ``results/runs`` and of the pages; ``folders`` hold runs to compare with."""
    problems = [*sources.problems, *cost_problems(sources.costs, sources.experiments, sources.paper)]
    runs = _runs_by_hash(folders)
    for record in sources.records:
        problems += [f"{record.path}: {problem}" for problem in record_problems(record, runs)]
    problems += _repeated(sources)
    problems += [
        f"{record.path}: no table shows {record.id}; add it to results/comparisons.yaml"
        for record in unshown_records(sources)
    ]
    return problems + list(page_problems(root, sources))


def record_problems(record: Record, runs: dict[str, list[Record]]) -> Iterator[str]:
    """Contradictions within a record, with its curve, and with its run folder where that is among ``runs``."""
    content = record.content
    if record.path.stem != record.stem:
        yield f"the name does not fit the content, which makes it {record.stem}.json"
    if content["config_hash"] != config_hash(select_binding(record.stored["config"], schema_of(record.stored))):
        yield "config_hash is not that of config; one of them was edited"
    if content["seed"] != content["config"]["seed"]:
        yield f"seed={content['seed']}, but config.seed={content['config']['seed']}"
    if content["experiment"] != record.stored["config"]["experiment"]:
        yield "experiment differs from config.experiment; one of them was edited"
    if content["metrics"] != content["all_metrics"].get(content["weights"]):
        yield f"metrics are not all_metrics.{content['weights']}; one of them was edited"
    if not all(math.isfinite(value) for value in content["metrics"].values()):
        yield "a metric is not finite"
    try:
        yield from _curve_problems(record)
    except RecordError as error:
        yield str(error)
    found = [list(_folder_problems(record, result)) for result in runs.get(content["config_hash"], [])]
    yield from min(found, key=len, default=[])  # of several runs of this configuration one must be the record's


def _curve_problems(record: Record) -> Iterator[str]:
    """The last evaluation of the curve must be the record's."""
    weights, metrics = record.content["weights"], record.content["metrics"]
    entries = read_curve(record.curve)
    for set_name in dict.fromkeys(name.partition("/")[0] for name in metrics):
        split = set_name if weights == "last" else f"{set_name}_{weights}"
        evaluations = [entry for entry in entries if entry["split"] == split]
        if not evaluations:
            yield f"{record.curve.name} beside it has no evaluation of the {weights} weights"
            return
        own = {name.partition("/")[2]: value for name, value in metrics.items() if name.startswith(f"{set_name}/")}
        for name, value in {**own, "step": record.content["steps"]}.items():
            if evaluations[-1].get(name) != value:
                yield f"{name} is {value} here and {evaluations[-1].get(name)} at the end of {record.curve.name}"
    training: dict[str, Any] = next((entry for entry in reversed(entries) if entry["split"] == "train"), {})
    for name, value in round_floats(record.content["train"]).items():
        if training.get(name, value) != value:  # what belongs to a machine is not kept in the curve
            yield f"train.{name} is {value} here and {training[name]} at the end of {record.curve.name}"


def _folder_problems(record: Record, result: Record) -> Iterator[str]:
    """``result`` is what the run folder says."""
    try:
        check_weights(record, result.path.parent)
    except RecordError as error:
        yield str(error)
    of_this_very_run = ("train", "wall_time_s", "hardware", "versions")
    is_same_run = result.content["date"] == record.content["date"]
    for key in ("metrics", "all_metrics", "steps", "cost", "data", *(of_this_very_run if is_same_run else ())):
        if result.content.get(key) != record.content.get(key):
            yield f"{key} differs from that of {result.path}"


def _runs_by_hash(folders: Iterable[Path]) -> dict[str, list[Record]]:
    """Finished runs on this machine by the hash of their configuration."""
    found: dict[str, list[Record]] = defaultdict(list)
    for path in find_results(folders):
        try:
            record = read_record(path)
        except RecordError:
            continue  # belongs to no experiment, or is not finished
        found[record.content["config_hash"]].append(record)
    return found


def _repeated(sources: Sources) -> Iterator[str]:
    for group in sources.groups:
        by_seed: dict[int, list[str]] = defaultdict(list)
        for record in group.records:
            by_seed[record.seed].append(record.path.name)
        for seed, names in by_seed.items():
            if len(names) > 1:
                yield f"{group.name} seed {seed} has {len(names)} records, {' and '.join(names)}; keep one"


def page_problems(root: Path, sources: Sources) -> Iterator[str]:
    """Pages that differ from what the records give, and links to records that do not exist."""
    try:
        pages = render_pages(root, make_tables(sources))
    except RecordError as error:
        yield str(error)
        return
    for path, expected in pages.items():
        found = path.read_text() if path.exists() else ""
        for link in dict.fromkeys(RECORD_LINK.findall(found)):
            if not (path.parent / link).is_file():
                yield f"{path.relative_to(root)}: a number has no record, {link} does not exist"
        if found != expected:
            yield f"{path.relative_to(root)}: {_first_difference(found, expected)}; python scripts/tables.py mends it"


def _first_difference(found: str, expected: str) -> str:
    compared = difflib.unified_diff(found.splitlines(), expected.splitlines(), lineterm="", n=0)
    changed = [line for line in list(compared)[2:] if not line.startswith("@@")]
    if not changed:
        return "line ends differ from the generated ones"
    side = "is not what the records give" if changed[0].startswith("-") else "is missing"
    return f"{len(changed)} lines differ from the records, the first ({changed[0][1:][:SHOWN]!r}) {side}"
