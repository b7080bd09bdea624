"""The forms of DRConv side by side: planted regions, which ``scripts/planted.py`` writes, and the test bed.

Imports no torch.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from drconv.results.costs import Cost
from drconv.results.read_records import Record
from drconv.results.summary import Group, compute_spread, pair_by_seed
from drconv.results.table import EMPTY, NOT_RUN, Table, format_spread

Fit = dict[str, Any]
Fits = dict[str, list[Fit]]
Cells = list[str | list[Record]]

BASELINE = "testbed/plain"
# What the form is, its name in the planted fits, its experiment in the test bed.
FORMS = (
    ("plain network", "plain", BASELINE),
    ("CondConv, 8 experts", "condconv", "testbed/condconv"),
    ("**DRConv, the default** (D11): shared filter gradients, damped generator", "two_parts", "testbed/two_parts"),
    ("the same with one scale for all logits", "two_parts_scale", "testbed/two_parts_scale"),
    ("the former default: a batch norm on the logits and a small start besides", "four_parts", "testbed/four_parts"),
    ("DRConv as printed", "printed", "testbed/printed"),
    ("DRConv as released: regions mix 8 experts", "released", "testbed/released"),
)
MEASURES = {
    "explained": "explained variance",
    "agreement": "agreement of the regions",
    "filter_spread": "spread of the filters",
    "largest_share": "largest share of a region",
}
TITLES = {
    "layer": "Planted regions: a layer imitates one whose four regions and filters are known",
    "network": "Planted regions: three layers with batch norms imitate three",
}


def read_fits(folder: Path) -> Fits:
    """The planted fits on record, by the name of their file, each list in its order."""
    paths = {name: folder / f"{name}.json" for name in TITLES}
    return {name: json.loads(path.read_text())["fits"] if path.exists() else [] for name, path in paths.items()}


def forms_table(fits: Fits, groups: list[Group], costs: dict[str, Cost]) -> Table:
    """One row for each form; planted regions at their worst over numbers of regions and seeds."""
    header = [
        "form",
        "planted regions: explained variance, at least",
        "agreement of the regions, at least",
        "test bed: top-1",
        "difference to plain, paired",
        "multiply-adds, counted",
        "records",
    ]
    as_written = {group.id: group for group in groups if not group.changes}
    rows: list[Cells] = []
    for title, planted, experiment in FORMS:
        members = [fit for fit in fits["layer"] if fit["form"] == planted]
        worst = [_worst([fit[key] for fit in members if key in fit]) for key in ("explained", "agreement")]
        cost = f"{costs[experiment].multiply_adds / 1e6:.2f}M" if experiment in costs else EMPTY
        found, records = _testbed_cells(as_written.get(experiment), as_written.get(BASELINE))
        rows.append([title, *worst, *found, cost, records])
    return Table("The forms side by side", header, rows)


def planted_table(name: str, fits: list[Fit]) -> Table:
    """A row for each form and number of regions, ranges over the seeds."""
    groups: dict[tuple[Any, ...], list[Fit]] = defaultdict(list)
    for fit in fits:
        groups[fit["form"], fit["regions"] if "agreement" in fit else None, fit["steps"], fit["lr"]].append(fit)
    header = ["form", "regions of the student", *MEASURES.values(), "steps", "learning rate", "seeds"]
    rows: list[Cells] = []
    for (form, regions, steps, lr), members in groups.items():
        cells = [_range([fit[key] for fit in members if key in fit]) for key in MEASURES]
        counts = [str(steps), f"{lr:g}", str(len({fit["seed"] for fit in members}))]
        rows.append([f"`{form}`", EMPTY if regions is None else str(regions), *cells, *counts])
    return Table(TITLES[name], header, rows or [[NOT_RUN, *[EMPTY] * (len(header) - 1)]])


def _testbed_cells(group: Group | None, baseline: Group | None) -> tuple[list[str], str | list[Record]]:
    """Accuracy and difference, and the records they come from."""
    if group is None:
        return [NOT_RUN, EMPTY], EMPTY
    spread = None if baseline is None or baseline is group else pair_by_seed(group, baseline)
    difference = EMPTY if spread is None else format_spread(spread, sign=True, unit="pair")
    return [format_spread(compute_spread([record.value for record in group.records])), difference], group.records


def _worst(values: list[float]) -> str:
    return f"{min(values):.3f}" if values else EMPTY


def _range(values: list[float]) -> str:
    if not values:
        return EMPTY
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"
