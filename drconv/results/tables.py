"""The tables: the paper's beside ours, and the comparisons; every number comes from a record. Imports no torch."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from drconv.results.decisions import find_decisions
from drconv.results.forms import forms_table, planted_table
from drconv.results.measured import measured_table
from drconv.results.read_records import Record
from drconv.results.sources import PAPER_TABLES, Sources, groups_of, select_ids
from drconv.results.summary import Group, Spread, compute_spread, find_baseline, pair_by_seed
from drconv.results.table import EMPTY, NOT_RUN, Table, format_spread


def make_tables(sources: Sources) -> dict[str, Table]:
    """All tables by name: the forms, the planted regions, the paper's, the comparisons, and those of
    the first page: ``summary``, Table 1 in short, and ``measured``."""
    tables = {"forms": forms_table(sources.fits, sources.groups, sources.costs)}
    tables |= {f"planted_{name}": planted_table(name, fits) for name, fits in sources.fits.items()}
    tables |= {name: paper_table(name, sources) for name in PAPER_TABLES if name in sources.paper}
    tables |= {name: comparison_table(name, sources) for name in sources.comparisons}
    return tables | {"summary": summary_table(sources), "measured": measured_table(sources)}


def paper_table(name: str, sources: Sources) -> Table:
    """One of the paper's tables, a row for each printed one, runs with changed settings below theirs."""
    title, key, headline = PAPER_TABLES[name]
    header = [
        "row",
        f"{headline}, paper",
        f"{headline}, ours",
        "difference",
        "multiply-adds, printed",
        "counted, paper's convention",
        "counted, true",
        "parameters, counted",
        "wall time",
        "decisions",
        "records",
    ]
    rows: list[list[str | list[Record]]] = []
    for row, printed in sources.paper[name].items():
        id = f"{name}/{row}"
        described = sources.experiments.describe(id)
        for group in groups_of(id, sources):
            rows.append(
                [
                    _row_name(row, printed, group),
                    _printed(printed[key]),
                    NOT_RUN if group is None else format_spread(_spread(group)),
                    EMPTY if group is None else _difference(group, printed[key], described.get("tolerance")),
                    f"{printed['madds']}M" if "madds" in printed else EMPTY,
                    *_cost_cells(id, group, sources, "paper_multiply_adds", "multiply_adds"),
                    *_run_cells(group, described),
                ]
            )
    return Table(title, header, rows)


def summary_table(sources: Sources) -> Table:
    """Table 1 with the columns a reader looks for first."""
    full = paper_table("table1", sources)
    columns = [full.header.index(name) for name in ("row", "top-1, paper", "top-1, ours", "records")]
    columns.insert(3, full.header.index("multiply-adds, printed"))
    columns.insert(4, full.header.index("counted, true"))
    header = [full.header[column] for column in columns]
    return Table(full.title, header, [[row[column] for column in columns] for row in full.rows])


def comparison_table(name: str, sources: Sources) -> Table:
    """An entry of ``comparisons.yaml``, the baseline first."""
    entry = sources.comparisons[name]
    baseline = entry.get("baseline")
    header = [
        "experiment",
        entry.get("headline", "top-1"),
        *([f"difference to `{Path(baseline).name}`, paired"] if baseline else []),
        "training top-1",
        "steps",
        "multiply-adds, counted",
        "parameters, counted",
        "wall time",
        "decisions",
        "records",
    ]
    rows: list[list[str | list[Record]]] = []
    for id in select_ids(entry, sources.experiments.ids):
        for group in groups_of(id, sources):
            row: list[str | list[Record]] = [_experiment_name(id, sources) + (_changes(group) if group else "")]
            row.append(NOT_RUN if group is None else format_spread(_spread(group)))
            if baseline:
                row.append(_paired(group, sources.experiments.run_of(baseline), sources.groups))
            row += [_training_accuracy(group), EMPTY if group is None else f"{group.records[0].content['steps']:,}"]
            row += [
                *_cost_cells(id, group, sources, "multiply_adds"),
                *_run_cells(group, sources.experiments.describe(id)),
            ]
            rows.append(row)
    return Table(entry["title"], header, rows, entry.get("text", ""))


def _row_name(row: str, printed: dict[str, Any], group: Group | None) -> str:
    marks = [
        text
        for key, text in (("starred", "hypothesis, D4"), ("released", "as released"), ("quoted", "quoted"))
        if printed.get(key)
    ]
    return f"`{row}`" + (f" ({', '.join(marks)})" if marks else "") + (_changes(group) if group else "")


def _experiment_name(id: str, sources: Sources) -> str:
    own = sources.experiments.run_of(id)
    return f"`{id}`" if own == id else f"`{id}` (the run of `{own}`)"


def _changes(group: Group) -> str:
    return f" with `{' '.join(group.changes)}`" if group.changes else ""


def _printed(value: float | list[float]) -> str:
    return str(value[0] if isinstance(value, list) else value)


def _spread(group: Group) -> Spread:
    return compute_spread([record.value for record in group.records])


def _difference(group: Group, printed: float | list[float], tolerance: float | None) -> str:
    """Ours minus the paper's; of runs with changed settings there is none."""
    if group.changes:
        return EMPTY
    difference = _spread(group).mean - (printed[0] if isinstance(printed, list) else printed)
    if tolerance is None:
        return f"{difference:+.2f}"
    return f"{difference:+.2f}, {'within' if abs(difference) <= tolerance else 'outside'} {tolerance:g}"


def _paired(group: Group | None, baseline: str, groups: list[Group]) -> str:
    if group is None:
        return EMPTY
    reference = find_baseline(group, baseline, groups)
    if reference is None or reference is group:
        return EMPTY
    spread = pair_by_seed(group, reference)
    return format_spread(spread, sign=True, unit="pair") if spread else EMPTY


def _training_accuracy(group: Group | None) -> str:
    values = [record.training_accuracy for record in group.records] if group else []
    known = [value for value in values if value is not None]
    return f"{compute_spread(known).mean:.2f}" if known and len(known) == len(values) else EMPTY


def _cost_cells(id: str, group: Group | None, sources: Sources, *keys: str) -> list[str]:
    """The counted cost: of a run what its record has, without a run that of the experiment's network."""
    counted = sources.costs.get(sources.experiments.run_of(id))
    cost = (group and group.records[0].content["cost"]) or (counted and asdict(counted))
    if not cost:
        return [EMPTY] * (len(keys) + 1)
    parameters = cost["parameters"]
    return [
        *(f"{cost[key] / 1e6:.{1 if cost[key] >= 1e6 else 2}f}M" for key in keys),
        f"{parameters / 1e6:.2f}M" if parameters >= 1e5 else f"{parameters / 1e3:.1f}k",
    ]


def _run_cells(group: Group | None, described: dict[str, Any]) -> list[str | list[Record]]:
    """Wall time, decisions, records."""
    if group is None:
        return [EMPTY, ", ".join(described.get("decisions", [])), EMPTY]
    content = group.records[-1].content
    claimed = described.get("decisions", content["experiment"]["decisions"])  # the file may have been corrected since
    decisions = find_decisions(claimed, content["config"]["model"])
    return [_wall_time(group), ", ".join(decisions), group.records]


def _wall_time(group: Group) -> str:
    minutes = compute_spread([record.content["wall_time_s"] / 60 for record in group.records]).mean
    time = f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"
    hardware = [record.content["hardware"] for record in group.records]
    names = dict.fromkeys(f"{used['num_devices']} x {used['device']}" for used in hardware)
    return f"{time}, {' / '.join(names)}"
