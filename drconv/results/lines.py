"""The rows of tables as plain values: what CSV and LaTeX files, the report and Figure 4 are made from. No torch."""

from dataclasses import asdict, dataclass
from typing import Any

from drconv.results.read_records import Record
from drconv.results.sources import PAPER_TABLES, Sources, groups_of, select_ids
from drconv.results.summary import Group, Spread, compute_spread, find_baseline, pair_by_seed


@dataclass(frozen=True)
class Line:
    """A row of a table. Numbers that do not exist are None: not run, not printed, one seed alone.

    Attributes:
        table: its name, such as ``table1``.
        row: the experiment.
        changes: what differs from the experiment's file.
        metric: what is compared, in percent.
        paper: the printed number.
        ours: mean over the seeds.
        spread: sample standard deviation over the seeds.
        seeds: how many.
        difference: ours minus the paper's.
        tolerance: of this difference.
        within: whether it lies within.
        baseline: the row that the paired difference refers to.
        paired: mean of the differences of equal seeds.
        paired_spread: their sample standard deviation.
        pairs: how many.
        printed_multiply_adds: what the paper prints.
        paper_multiply_adds: counted by the paper's convention.
        multiply_adds: counted, all of them, whether run or not.
        parameters: counted.
        records: names of the files.
    """

    table: str
    row: str
    changes: str
    metric: str
    paper: float | None
    ours: float | None
    spread: float | None
    seeds: int
    difference: float | None
    tolerance: float | None
    within: bool | None
    baseline: str | None
    paired: float | None
    paired_spread: float | None
    pairs: int
    printed_multiply_adds: int | None
    paper_multiply_adds: int | None
    multiply_adds: int | None
    parameters: int | None
    records: tuple[str, ...]


def line_tables(sources: Sources) -> list[str]:
    """Names of the tables that have lines."""
    return [*(name for name in PAPER_TABLES if name in sources.paper), *sources.comparisons]


def title_of(name: str, sources: Sources) -> str:
    """The table's title."""
    return PAPER_TABLES[name][0] if name in PAPER_TABLES else sources.comparisons[name]["title"]


def table_lines(name: str, sources: Sources) -> list[Line]:
    """The lines of one of the paper's tables or of a comparison, in the order of its page."""
    if name in PAPER_TABLES:
        ids = [f"{name}/{row}" for row in sources.paper[name]]
        return [_line(name, id, group, sources, None) for id in ids for group in groups_of(id, sources)]
    entry = sources.comparisons[name]
    ids = select_ids(entry, sources.experiments.ids)
    return [_line(name, id, group, sources, entry.get("baseline")) for id in ids for group in groups_of(id, sources)]


def printed_number(id: str, sources: Sources) -> float | None:
    """The headline that the paper prints for an experiment, or for the one whose run it shows."""
    table, _, row = sources.experiments.run_of(id).rpartition("/")
    printed = sources.paper.get(table, {}).get(row)
    value = printed and printed[PAPER_TABLES[table][1]]
    return value[0] if isinstance(value, list) else value


def _line(table: str, id: str, group: Group | None, sources: Sources, baseline: str | None) -> Line:
    own = sources.experiments.run_of(id)
    paper = None if group and group.changes else printed_number(id, sources)
    ours = compute_spread([record.value for record in group.records]) if group else None
    difference = None if ours is None or paper is None else ours.mean - paper
    tolerance = sources.experiments.describe(id).get("tolerance") if paper is not None else None
    paired = _paired(group, baseline and sources.experiments.run_of(baseline), sources)
    kept = None if group is None else group.records[0].content["cost"]
    cost: dict[str, Any] = kept or (asdict(sources.costs[own]) if own in sources.costs else {})
    printed = sources.paper.get(own.rpartition("/")[0], {}).get(own.rpartition("/")[2], {}).get("madds")
    return Line(
        table=table,
        row=id,
        changes=" ".join(group.changes) if group else "",
        metric=_metric(table, sources),
        paper=paper,
        ours=None if ours is None else ours.mean,
        spread=None if ours is None else ours.deviation,
        seeds=0 if ours is None else ours.count,
        difference=difference,
        tolerance=tolerance,
        within=None if difference is None or tolerance is None else abs(difference) <= tolerance,
        baseline=baseline,
        paired=paired.mean if paired else None,
        paired_spread=paired.deviation if paired else None,
        pairs=paired.count if paired else 0,
        printed_multiply_adds=None if printed is None else round(printed * 1e6),
        paper_multiply_adds=cost.get("paper_multiply_adds"),
        multiply_adds=cost.get("multiply_adds"),
        parameters=cost.get("parameters"),
        records=tuple(record.path.name for record in _records(group)),
    )


def _metric(table: str, sources: Sources) -> str:
    return PAPER_TABLES[table][2] if table in PAPER_TABLES else sources.comparisons[table].get("headline", "top-1")


def _paired(group: Group | None, baseline: str | None, sources: Sources) -> Spread | None:
    if group is None or baseline is None:
        return None
    reference = find_baseline(group, baseline, sources.groups)
    return None if reference is None or reference is group else pair_by_seed(group, reference)


def _records(group: Group | None) -> list[Record]:
    return [] if group is None else group.records
