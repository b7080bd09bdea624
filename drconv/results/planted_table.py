"""Tables of the planted regions, from the files that ``scripts/planted.py`` writes. Imports no torch."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from drconv.results.tables import EMPTY, Table

Row = dict[str, Any]
MEASURES = {
    "explained": "explained variance",
    "agreement": "agreement of the regions",
    "filter_spread": "spread of the filters",
    "largest_share": "largest share of a region",
}
TITLES = {
    "layer": "Planted regions: one layer that imitates another, whose four regions and filters are known",
    "network": "Planted regions: three layers with batch norms that imitate three",
}


def read_rows(path: Path) -> list[Row]:
    """The fits on record, in their order; none where there is no file."""
    return json.loads(path.read_text())["fits"] if path.exists() else []


def planted_table(name: str, folder: Path) -> Table:
    """A row for each form and number of regions, ranges over the seeds."""
    groups: dict[tuple[str, int | None], list[Row]] = defaultdict(list)
    for row in read_rows(folder / f"{name}.json"):
        groups[row["form"], row["regions"] if "agreement" in row else None].append(row)
    header = ["form", "regions of the student", *MEASURES.values(), "seeds"]
    rows: list[list[Any]] = []
    for (form, regions), members in groups.items():
        cells = [_range([row[key] for row in members if key in row]) for key in MEASURES]
        seeds = len({row["seed"] for row in members})
        rows.append([form, EMPTY if regions is None else str(regions), *cells, str(seeds)])
    return Table(TITLES[name], header, rows)


def _range(values: list[float]) -> str:
    if not values:
        return EMPTY
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"
