"""Draws accuracy against cost, plain and DRConv: the paper's Figure 4, from the records.

    drconv tradeoff --out figure4.svg
    drconv tradeoff --table imagenette_0.5x --out imagenette.svg

Filled points are ours with the spread over the seeds, at the multiply-adds that were counted; hollow ones are the
paper's, at those that it prints. Tables are those of `drconv tables`.
"""

import argparse
import re
from pathlib import Path

from drconv.errors import ConfigError
from drconv.figures.charts import Line as Curve
from drconv.figures.charts import Panel, draw_chart
from drconv.files import replace_file
from drconv.messages import exit_with
from drconv.paths import CHECKOUT
from drconv.results.lines import Line, line_tables, table_lines, title_of
from drconv.results.sources import load_sources

KINDS = {  # by the prefix of a row's name
    "drconv_lite_": "DRConv, lite",
    "drconv_released_": "DRConv, as released",
    "drconv_experts_": "DRConv, mixed experts",
    "drconv_": "DRConv",
    "condconv_": "CondConv",
    "local_": "local convolution",
    "dk_": "deformable kernels",
    "": "plain",
}
NETWORK = re.compile(r"(?P<network>mobilefacenet|\w+net\w*?)(_[\d.]+x(?P<widened>_same_\w+)?)?$")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", default="figure4", help="name of the table")
    parser.add_argument("--root", type=Path, default=CHECKOUT or Path(), help="folder of results/")
    parser.add_argument("--out", type=Path, required=True, help="SVG to write")
    options = parser.parse_args()
    try:
        sources = load_sources(options.root)
        if options.table not in line_tables(sources):
            raise ConfigError(f"--table={options.table} is unknown; choose {', '.join(line_tables(sources))}")
        chart = draw_tradeoff(title_of(options.table, sources), table_lines(options.table, sources))
        if chart is None:
            raise ConfigError(f"--table={options.table} has no number of the paper and no record; nothing to draw")
        replace_file(options.out, chart)
        print(f"written {options.out}")
    except Exception as error:
        exit_with(error)


def kind_of(row: str) -> tuple[str, str] | None:
    """The network without its width, and what was done to it; None for rows that are no network at some width."""
    name = row.rpartition("/")[2]
    prefix = next(prefix for prefix in KINDS if name.startswith(prefix))
    found = NETWORK.fullmatch(name.removeprefix(prefix))
    if not found:
        return None
    widened = "plain, widened" if found["widened"] else KINDS[prefix]
    return found["network"], widened


def draw_tradeoff(title: str, lines: list[Line]) -> str | None:
    """The chart as SVG; None where no line has a number, or none is a network at some width.

    Args:
        title: of the panel.
        lines: of a table; those with changed settings are left out.
    """
    series: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found = kind_of(line.row)
        if found and not line.changes and line.multiply_adds and (line.ours is not None or line.paper is not None):
            series.setdefault(found, []).append(line)
    curves, labels = [], []
    for number, ((network, kind), members) in enumerate(series.items()):
        labels.append(f"{network}, {kind}")
        ours = sorted(
            (line.multiply_adds or 0, line.ours, line.spread or 0.0) for line in members if line.ours is not None
        )
        paper = [
            ((line.printed_multiply_adds or line.multiply_adds or 0) / 1e6, line.paper)
            for line in members
            if line.paper is not None
        ]
        spreads = [spread for _, _, spread in ours]
        curves.append(Curve(number, [(cost / 1e6, value) for cost, value, _ in ours], "full", spreads))
        curves.append(Curve(number, paper, "hollow"))
    if not curves:
        return None
    has_printed = any(curve.marker == "hollow" and curve.points for curve in curves)
    x_label = "multiply-adds, millions" + ("; hollow: the paper's" if has_printed else "")
    panel = Panel(title, curves, x_label=x_label, x_logarithmic=True)
    return draw_chart([panel], labels, columns=1)
