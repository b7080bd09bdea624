"""What tables are made from, and which rows they have. Imports no torch."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from drconv.paths import CONFIGS, RESULTS
from drconv.results.costs import Cost, read_costs
from drconv.results.experiments import Experiments
from drconv.results.forms import Fits, read_fits
from drconv.results.read_records import Record, read_records
from drconv.results.summary import Group, group_records

PAPER_TABLES = {  # of paper.yaml: title, key of the headline, its name
    "table1": ("Table 1: ImageNet, 224 pixels", "top1", "top-1"),
    "table2": ("Table 2: MegaFace, 1,000,000 distractors", "rank1", "rank-1"),
    "table3": ("Table 3: COCO minival", "box", "box AP"),
}


@dataclass(frozen=True)
class Sources:
    """All that tables are made from.

    Attributes:
        paper: ``results/paper.yaml``, the printed numbers.
        comparisons: ``results/comparisons.yaml``.
        experiments: the experiment files.
        records: all records, by experiment and seed.
        groups: the same, by configuration.
        costs: ``results/costs.yaml``, what was counted without a run.
        problems: files in ``results/runs`` that are no records.
        fits: those of ``results/planted``, by file.
    """

    paper: dict[str, Any]
    comparisons: dict[str, Any]
    experiments: Experiments
    records: list[Record]
    groups: list[Group]
    costs: dict[str, Cost]
    problems: list[str]
    fits: Fits


def load_sources(root: Path) -> Sources:
    """Reads a checkout, or a folder with records alone, to which the installed configurations and numbers belong."""
    is_project = (root / "configs").is_dir()
    experiments = Experiments(root / "configs" if is_project else CONFIGS)
    given = root / "results" if is_project else RESULTS
    records, problems = read_records(root / "results" / "runs")
    known = [record for record in records if record.id in experiments.ids]
    problems += [
        f"{record.path} is of {record.id}, which configs/experiment does not have; restore that file or delete the "
        f"record"
        for record in records
        if record.id not in experiments.ids
    ]
    paper = yaml.safe_load((given / "paper.yaml").read_text())
    comparisons = yaml.safe_load((given / "comparisons.yaml").read_text())
    costs = read_costs(given / "costs.yaml")
    fits = read_fits(root / "results" / "planted")
    return Sources(paper, comparisons, experiments, known, group_records(known, experiments), costs, problems, fits)


def unshown_records(sources: Sources) -> list[Record]:
    """Records that no table has a row for."""
    in_paper = {f"{table}/{name}" for table in PAPER_TABLES for name in sources.paper.get(table, {})}
    patterns = [pattern for entry in sources.comparisons.values() for pattern in patterns_of(entry)]
    return [
        record
        for record in sources.records
        if record.id not in in_paper and not any(fnmatchcase(record.id, pattern) for pattern in patterns)
    ]


def select_ids(entry: dict[str, Any], ids: list[str]) -> list[str]:
    chosen = [id for pattern in patterns_of(entry) for id in ids if fnmatchcase(id, pattern)]
    return list(dict.fromkeys(chosen))


def patterns_of(entry: dict[str, Any]) -> list[str]:
    return [*([entry["baseline"]] if "baseline" in entry else []), *entry["rows"]]


def groups_of(id: str, sources: Sources) -> list[Group | None]:
    """The groups of an experiment; None stands for the experiment as its file says where that was not run.

    A row that is another row's run shows that run; runs with changed settings stand with the other row alone.
    """
    own = sources.experiments.run_of(id)
    found = [group for group in sources.groups if group.id == own and (own == id or not group.changes)]
    as_written = any(not group.changes for group in found)
    return [*([] if as_written else [None]), *found]
