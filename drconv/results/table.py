"""What a table is, and how a number with its spread is written. Imports no torch."""

from dataclasses import dataclass

from drconv.results.read_records import Record
from drconv.results.summary import Spread

NOT_RUN = "not run"
EMPTY = "-"


@dataclass(frozen=True)
class Table:
    """Cells as Markdown; a cell with links is a list of records, written when the page is known."""

    title: str
    header: list[str]
    rows: list[list[str | list[Record]]]
    text: str = ""


def format_spread(spread: Spread, sign: bool = False, unit: str = "seed") -> str:
    """Such as ``78.12 ± 0.31 (3 seeds)``; no ± for a single number."""
    number = f"{spread.mean:+.2f}" if sign else f"{spread.mean:.2f}"
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.2f}"
    return f"{number}{deviation} ({spread.count} {unit}{'' if spread.count == 1 else 's'})"
