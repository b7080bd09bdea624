"""The parts of the page that come from records: tables, runs, differences from the paper, environment. No torch."""

from collections import Counter, defaultdict

from drconv.report.html import Cell, details, table, text
from drconv.results.decisions import find_decisions
from drconv.results.deviations import read_deviations
from drconv.results.lines import Line, line_tables, table_lines, title_of
from drconv.results.measured import measured_table
from drconv.results.read_records import Record
from drconv.results.sources import Sources
from drconv.results.write_tables import columns_in_use

PAPER = ("table1", "table2", "table3", "figure4", "regions", "spatial")


def measured_section(sources: Sources) -> str:
    """The comparisons that were run, in one table."""
    shown = measured_table(sources)
    return table(shown.header, [[str(cell) for cell in row] for row in shown.rows])


def tables_section(sources: Sources, charts: dict[str, str]) -> str:
    """Every table, with its chart of accuracy against cost; those that nobody ran are folded.

    Args:
        sources: what tables are made from.
        charts: HTML of the charts by table.
    """
    parts = []
    for name in line_tables(sources):
        lines = table_lines(name, sources)
        body = lines_table(lines) + charts.get(name, "")
        was_run = any(line.ours is not None for line in lines)
        note = "" if was_run else " (not run; costs are counted)"
        parts.append(details(title_of(name, sources) + note, body, is_open=was_run or name == "table1"))
    return "\n".join(parts)


def lines_table(lines: list[Line]) -> str:
    """The lines of a table; rows are named by experiment and changes."""
    header, rows = columns_in_use(lines)
    marked = [[_marked(line, cell) for cell in cells] for line, cells in zip(lines, rows, strict=True)]
    return table(header, marked, [f"{line.row} {line.changes}".strip() for line in lines])


def _marked(line: Line, cell: str) -> Cell:
    if line.within is not None and ("within" in cell or "outside" in cell):
        return cell, "good" if line.within else "bad"
    return (cell, "faint") if cell == "not run" else cell


def runs_section(records: list[Record], charts: dict[str, str]) -> str:
    """Every run with its numbers, by experiment, with the curves of its seeds.

    Args:
        records: to be shown.
        charts: HTML of the curves by experiment.
    """
    by_id: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_id[record.id].append(record)
    parts = []
    for id, members in by_id.items():
        header = ["run", members[0].metric, "training", "steps", "minutes", "date"]
        rows = [_run_row(record) for record in members]
        body = table(header, rows, [record.stem for record in members]) + charts.get(id, "")
        parts.append(details(f"{id}: {len(members)} run{'' if len(members) == 1 else 's'}", body))
    return "\n".join(parts)


def _run_row(record: Record) -> list[Cell]:
    training = record.training_accuracy
    return [
        f"seed {record.seed}, {record.content['config_hash'][:8]}{' (changed code)' if record.is_dirty else ''}",
        f"{record.value:.2f}",
        "-" if training is None else f"{training:.2f}",
        f"{record.content['steps']:,}",
        f"{record.content['wall_time_s'] / 60:.0f}",
        record.content["date"],
    ]


def differences_section(records: list[Record]) -> str:
    """The decisions in force in the records, with their words; all where there is no record."""
    known = read_deviations()
    used: Counter[str] = Counter()
    for record in records:
        content = record.content
        used.update(find_decisions(content["experiment"].get("decisions", []), content["config"]["model"]))
    ids = sorted({*known, *used}, key=lambda id: int(id[1:]))
    rows: list[list[Cell]] = []
    for id in ids:
        words = known.get(id)
        question, choice = (words.question, words.choice) if words else ("see docs/deviations.md", "")
        rows.append([f"{id}: {_plain(question)}", (_plain(choice), "text"), str(used[id] or "-")])
    return table(["what the paper leaves open", "what is done here", "runs"], rows, ids)


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")


def environment_section(records: list[Record], here: dict[str, str]) -> str:
    """Where the runs were made, and where this page was.

    Args:
        records: that are shown.
        here: name and value of what this page was made with.
    """
    machines: Counter[tuple[str, ...]] = Counter()
    for record in records:
        hardware, versions = record.content["hardware"], record.content.get("versions", {})
        device = f"{hardware['num_devices']} x {hardware['device']}"
        machines[device, versions.get("torch") or "-", versions.get("python") or "-"] += 1
    rows: list[list[Cell]] = [[*key, str(count)] for key, count in machines.items()]
    commits = Counter((record.content["code"]["commit"] or "unknown")[:12] for record in records)
    made = "".join(f"<li>{text(name)}: {text(value)}</li>" for name, value in here.items())
    return (
        (table(["device", "PyTorch", "Python", "runs"], rows) if rows else "")
        + f"<p>Code of the runs: {text(', '.join(f'{commit} ({n})' for commit, n in commits.items()) or '-')}</p>"
        + f"<p>This page:</p><ul>{made}</ul>"
    )
