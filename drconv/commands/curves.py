"""Draws curves of runs into one SVG: loss, accuracy, and what the guides do.

    drconv curves 'as printed=outputs/small/inside/printed/seed0' default=results/runs/NAME.jsonl --out a.svg

A run is a run folder, its metrics.jsonl, or a record or curve in results/runs; LABEL= before it names it in the legend.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from drconv.figures.charts import Line, Panel, Point, draw_chart
from drconv.files import replace_file
from drconv.results.read_records import read_curve

Entry = dict[str, Any]


def largest_share(entry: Entry) -> float:
    """Of any region in any guide: 1 where one region takes every position of a guide."""
    return max(max(guide["usage"]) for guide in entry["regions"].values())


def mean_entropy(entry: Entry) -> float:
    guides = entry["regions"].values()
    return sum(guide["entropy"] for guide in guides) / len(guides)


def largest_spread(entry: Entry) -> float:
    return max(guide["logit_std"] for guide in entry["regions"].values())


def mean_filter_spread(entry: Entry) -> float | None:
    """None for a run that was made before this was logged."""
    spreads = [guide.get("filter_spread") for guide in entry["regions"].values()]
    return None if None in spreads else sum(spreads) / len(spreads)


def gradient_of(part: str) -> Callable[[Entry], float | None]:
    """Norm of the gradients of ``guide``, ``generator``, ``filters`` or ``rest``; a frozen part has none."""
    return lambda entry: entry["gradients"][part] or None


# name: title, split, key that an entry must have, value, whether the axis is logarithmic
PANELS: dict[str, tuple[str, str, str, Callable[[Entry], float | None], bool]] = {
    "loss": ("training loss", "train", "loss", lambda entry: entry["loss"], False),
    "top1": ("training top-1, %", "train", "top1", lambda entry: entry["top1"], False),
    "val": ("validation top-1, %", "val", "top1", lambda entry: entry["top1"], False),
    "usage": ("largest share of a region, over all guides", "train", "regions", largest_share, False),
    "entropy": ("entropy of the usage / maximum, mean of the guides", "train", "regions", mean_entropy, False),
    "spread": ("spread of the guides' logits, largest guide", "train", "regions", largest_spread, True),
    "filters": ("spread of the filters over the regions, mean", "train", "regions", mean_filter_spread, False),
    "guide_gradient": ("gradient norm of the guides", "train", "gradients", gradient_of("guide"), True),
    "generator_gradient": ("gradient norm of the generators", "train", "gradients", gradient_of("generator"), True),
    "filter_gradient": ("gradient norm of the filters", "train", "gradients", gradient_of("filters"), True),
    "rest_gradient": ("gradient norm of all other parameters", "train", "gradients", gradient_of("rest"), True),
}


def main() -> None:
    """The command line."""
    options = parse_options()
    labels, curves = [], []
    for argument in options.runs:
        label, path = split_label(argument)
        labels.append(label)
        curves.append(read_run(path))
    try:
        chart = draw_chart([make_panel(name, curves) for name in options.panels], labels, options.columns)
    except ValueError as error:
        sys.exit(f"error: {error}")
    replace_file(options.out, chart)
    print(f"written {options.out}: {len(curves)} runs, panels {', '.join(options.panels)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="[LABEL=]RUN")
    parser.add_argument("--panels", nargs="+", choices=list(PANELS), default=["loss", "val", "usage", "spread"])
    parser.add_argument("--columns", type=int, default=2, help="panels in a row")
    parser.add_argument("--out", type=Path, required=True, help="SVG to write")
    return parser.parse_args()


def split_label(argument: str) -> tuple[str, Path]:
    """A path may hold ``=`` itself, so the whole argument is tried as a path first."""
    if Path(argument).exists():
        return argument, Path(argument)
    label, _, path = argument.partition("=")
    return label, Path(path)


def read_run(path: Path) -> list[Entry]:
    """The entries of a run, wherever they are kept."""
    if path.is_dir():
        path = path / "metrics.jsonl"
    if path.suffix == ".json":
        path = path.with_suffix(".jsonl")
    if not path.is_file():
        sys.exit(f"error: {path} is not there; give a run folder or a file of results/runs")
    return read_curve(path)


def make_panel(name: str, curves: list[list[Entry]]) -> Panel:
    """One quantity of all runs; a run without it (a plain network has no guides) has no line."""
    title, split, key, value, is_logarithmic = PANELS[name]
    lines = []
    for number, entries in enumerate(curves):
        shown = [entry for entry in entries if entry["split"] == split and entry.get(key)]
        points: list[Point] = [(entry["step"], y) for entry in shown if (y := value(entry)) is not None]
        lines.append(Line(number, points))
    return Panel(title, lines, is_logarithmic)
