"""Tables as files: CSV with a column for every value, LaTeX (booktabs) and Markdown to paste. Imports no torch."""

import csv
import io
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from drconv.files import replace_file
from drconv.results.lines import Line, line_tables, table_lines, title_of
from drconv.results.sources import Sources

NONE = "-"
SPECIAL = {character: f"\\{character}" for character in "_%&#${}"} | {"~": r"\textasciitilde{}"}


def write_tables(sources: Sources, format: str, folder: Path) -> list[Path]:
    """A file for each table: Tables 1 to 3, the ablations, Figure 4 and the comparisons.

    Args:
        sources: all that tables are made from.
        format: one of ``FORMATS``.
        folder: made if it is missing; files of the same names are replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ending, render = FORMATS[format]
    written = []
    for name in line_tables(sources):
        path = folder / f"{name}{ending}"
        replace_file(path, render(title_of(name, sources), table_lines(name, sources)))
        written.append(path)
    return written


def as_csv(title: str, lines: list[Line]) -> str:
    """A row for each line, a column for each value; what does not exist is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Line.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    for line in lines:
        writer.writerow({**asdict(line), "records": " ".join(line.records)})
    return text.getvalue()


def cells_of(line: Line) -> list[str]:
    """The line as a table for people shows it; ``header_of`` has the columns."""
    name = line.row.rpartition("/")[2] + (f" with {line.changes}" if line.changes else "")
    ours = "not run" if line.ours is None else f"{line.ours:.2f}"
    if line.spread is not None:
        ours += f" ± {line.spread:.2f}"
    difference = _signed(line.difference)
    if line.within is not None:
        difference += f", {'within' if line.within else 'outside'} {line.tolerance:g}"
    paired = _signed(line.paired) + (f" ± {line.paired_spread:.2f}" if line.paired_spread is not None else "")
    costs = (line.printed_multiply_adds, line.paper_multiply_adds, line.multiply_adds, line.parameters)
    paper = NONE if line.paper is None else f"{line.paper:.1f}"
    return [name, paper, ours, str(line.seeds or NONE), difference, paired, *map(_millions, costs)]


def header_of(lines: list[Line]) -> list[str]:
    """Names of the columns of ``cells_of``."""
    baseline = lines[0].baseline if lines else None
    metric = lines[0].metric if lines else ""
    return [
        *("row", f"{metric}, paper", f"{metric}, ours", "seeds", "difference to the paper"),
        f"difference to {baseline.rpartition('/')[2]}, paired" if baseline else "paired difference",
        *("multiply-adds, printed", "counted, paper's convention", "counted, all", "parameters"),
    ]


def columns_in_use(lines: list[Line]) -> tuple[list[str], list[list[str]]]:
    """Header and cells without the columns in which no line has anything."""
    header, rows = header_of(lines), [cells_of(line) for line in lines]
    used = [place for place in range(len(header)) if any(row[place] != NONE for row in rows)]
    return [header[place] for place in used], [[row[place] for place in used] for row in rows]


def as_markdown(title: str, lines: list[Line]) -> str:
    """A title and a table."""
    header, rows = columns_in_use(lines)
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join([f"# {title}", "", *(f"| {' | '.join(cells)} |" for cells in (header, align, *rows)), ""])


def as_latex(title: str, lines: list[Line]) -> str:
    """A ``table`` with ``booktabs`` rules."""
    header, rows = columns_in_use(lines)
    body = [" & ".join(map(_latex, cells)) + r" \\" for cells in rows]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{_latex(title)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_latex, header)) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


FORMATS: dict[str, tuple[str, Callable[[str, list[Line]], str]]] = {
    "csv": (".csv", as_csv),
    "latex": (".tex", as_latex),
    "markdown": (".md", as_markdown),
}


def _signed(value: float | None) -> str:
    return NONE if value is None else f"{value:+.2f}"


def _millions(value: int | None) -> str:
    if value is None:
        return NONE
    if value >= 1e10:
        return f"{value / 1e9:.1f}G"
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.1f}k"


def _latex(cell: str) -> str:
    escaped = "".join(SPECIAL.get(character, character) for character in cell)
    return escaped.replace("±", r"$\pm$").replace("-", "--" if cell == NONE else "-")
