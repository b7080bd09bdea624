"""HTML text: tables, sections, and a page that needs no server, no connection and no script."""

from collections.abc import Iterable, Sequence
from html import escape

from drconv.errors import printable

STYLE = """
:root { color-scheme: light dark; --ground: #fcfcfb; --panel: #ffffff; --ink: #1b1b1a; --faint: #6a6a66;
  --line: #dcdcd6; --good: #0a6b3d; --bad: #a12a10; --heat: 0, 114, 178; }
@media (prefers-color-scheme: dark) { :root { --ground: #161615; --panel: #1f1f1d; --ink: #ececea; --faint: #a3a39d;
  --line: #3a3a37; --good: #5fd39b; --bad: #ff9478; --heat: 86, 180, 233; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0.5rem 0; } h2 { font-size: 1.25rem; margin: 2.2rem 0 0.6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 0.4rem; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; } a { color: inherit; }
p.note, figcaption, .faint { color: var(--faint); font-size: 0.9rem; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--panel); }
table { border-collapse: collapse; font-size: 0.86rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem; }
td.text, th.text { text-align: left; white-space: normal; min-width: 9rem; }
thead th { white-space: normal; overflow-wrap: normal; vertical-align: bottom; font-weight: 600; }
tbody tr:last-child td { border-bottom: 0; } .good { color: var(--good); } .bad { color: var(--bad); }
details { border: 1px solid var(--line); border-radius: 6px; margin: 0.4rem 0; background: var(--panel); }
summary { padding: 0.45rem 0.7rem; cursor: pointer; } details > :not(summary) { margin: 0.4rem 0.7rem; }
figure { margin: 0.6rem 0; overflow-x: auto; } figure > svg { max-width: 100%; height: auto; display: block; }
figure.masks > svg { max-width: none; }
ul.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: 0.86rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 0.8rem; }
svg .ground { fill: var(--panel); } svg text { fill: var(--ink); } svg .grid { stroke: var(--line); }
svg .frame { stroke: var(--faint); } svg [stroke="#000000"] { stroke: var(--ink); }
svg circle[fill="#000000"] { fill: var(--ink); }
@media (prefers-color-scheme: dark) { figure:not(.masks) svg :is(path, circle) { filter: brightness(1.4); } }
table.confusion { min-width: 0; } table.confusion td { text-align: center; min-width: 2.4rem; }
table.confusion th { font-weight: 400; } table.confusion thead th { writing-mode: vertical-rl; text-align: left; }
table.confusion thead th:first-child { writing-mode: horizontal-tb; }
@media (max-width: 40rem) { body { padding: 0.7rem; font-size: 15px; } th, td { padding: 0.25rem 0.4rem; }
  th:first-child, td:first-child { min-width: 8.5rem; } details > :not(summary) { margin: 0.4rem 0.4rem; } }
@media print { :root { color-scheme: light; --ground: #fff; --panel: #fff; --ink: #000; --faint: #444; --line: #bbb; }
  body { max-width: none; font-size: 10pt; } nav { display: none; } .wide, figure { overflow: visible; border: 0; }
  table { font-size: 7.5pt; } th, td { white-space: normal; padding: 0.1rem 0.3rem; }
  th:first-child, td:first-child, td.text { min-width: 0; } h2 { break-after: avoid; }
  tr, figure { break-inside: avoid; } }
"""

Cell = str | tuple[str, str]  # text, or text and its class


def text(content: object) -> str:
    """Foreign text, such as names of classes and runs, as text and nothing else."""
    return escape(printable(str(content)))


def table(
    header: Sequence[str], rows: Iterable[Sequence[Cell]], names: Iterable[str] | None = None, kind: str = ""
) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        header: of the columns.
        rows: their cells, as text.
        names: of the rows, kept in ``data-name``.
        kind: class of the table.
    """
    rows, body = list(rows), []
    kinds = [' class="text"' if rows and rows[0][place][1:] == ("text",) else "" for place in range(len(header))]
    head = "".join(f"<th{own}>{text(cell)}</th>" for own, cell in zip(kinds, header, strict=True))
    for name, row in zip(names or [""] * len(rows), rows, strict=True):
        tag = f'<tr data-name="{text(name)}">' if name else "<tr>"
        body.append(f"{tag}{''.join(map(_cell, row))}</tr>")
    own = f' class="{kind}"' if kind else ""
    return f'<div class="wide"><table{own}><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f"<td>{text(cell)}</td>"
    content, kind = cell
    return f'<td class="{kind}">{text(content)}</td>' if ":" not in kind else f'<td style="{kind}">{text(content)}</td>'


def details(title: str, body: str, is_open: bool = False) -> str:
    """A part that is folded."""
    return f"<details{' open' if is_open else ''}><summary>{text(title)}</summary>{body}</details>"


def figure(svg: str, caption: str = "", kind: str = "") -> str:
    """A drawing with what it shows."""
    words = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    own = f' class="{kind}"' if kind else ""
    return f"<figure{own}>{svg}{words}</figure>"


def page(title: str, introduction: str, sections: dict[str, str]) -> str:
    """The whole file.

    Args:
        title: of the page.
        introduction: HTML below it.
        sections: HTML by title; empty ones are left out.
    """
    kept = {name: body for name, body in sections.items() if body}
    links = "".join(f'<a href="#s{number}">{text(name)}</a>' for number, name in enumerate(kept))
    parts = [f'<h2 id="s{number}">{text(name)}</h2>\n{body}' for number, (name, body) in enumerate(kept.items())]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>{text(title)}</h1>\n{introduction}\n"
        f"<nav>{links}</nav>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
