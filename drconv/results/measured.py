"""What was measured here, in one table: every comparison with records, the plain network beside the others."""

from typing import Any

from drconv.results.lines import Line, table_lines
from drconv.results.sources import Sources
from drconv.results.summary import Spread
from drconv.results.table import EMPTY, Table, format_spread

HEADER = [
    "what was measured",
    "plain",
    "CondConv",
    "DRConv",
    "DRConv - plain, paired",
    "multiply-adds, plain and DRConv",
]


def measured_table(sources: Sources) -> Table:
    """A row for each entry of ``comparisons.yaml`` that names its DRConv (``ours``) and has runs of it."""
    rows: list[list[Any]] = []
    for name, entry in sources.comparisons.items():
        if "ours" not in entry:
            continue
        as_written = {line.row: line for line in table_lines(name, sources) if not line.changes}
        plain, rival, ours = (as_written.get(entry.get(key)) for key in ("baseline", "rival", "ours"))
        if ours is None or ours.ours is None or plain is None:
            continue
        paired = (
            EMPTY
            if ours.paired is None
            else format_spread(Spread(ours.paired, ours.paired_spread, ours.pairs), True, "pair")
        )
        costs = " and ".join(f"{(line.multiply_adds or 0) / 1e6:.1f}M" for line in (plain, ours))
        rows.append([f"{entry['title']}: {ours.metric}", *map(_number, (plain, rival, ours)), paired, costs])
    empty: list[list[Any]] = [["nothing yet", *[EMPTY] * (len(HEADER) - 1)]]
    return Table("What was measured here, in percent, mean and spread over the seeds", HEADER, rows or empty)


def _number(line: Line | None) -> str:
    if line is None or line.ours is None:
        return EMPTY
    return format_spread(Spread(line.ours, line.spread, line.seeds))
