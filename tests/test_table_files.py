"""Tables as CSV, LaTeX and Markdown, and README's table of what was measured: against numbers worked out by hand."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest

from drconv.commands.tables import parse_arguments, run
from drconv.results.lines import line_tables
from drconv.results.sources import load_sources
from drconv.results.write_tables import FORMATS, write_tables
from tests.project import DRCONV, PLAIN, make_project, make_run, record_all, row_of

ROW = "table1/drconv_shufflenetv2_0.5x"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of a row of Table 1, three of a small comparison; no test changes it."""
    root = make_project(tmp_path_factory.mktemp("tables") / "project")
    for seed, top1 in enumerate((66.0, 67.0)):
        make_run(root, ROW, seed, top1)
    for seed, (plain, ours) in enumerate(((77.0, 80.0), (78.0, 79.0), (79.0, 84.0))):
        make_run(root, PLAIN, seed, plain)
        make_run(root, DRCONV, seed, ours)
    make_run(root, DRCONV, 0, 50.0, "recipe.optimizer.lr=0.3")
    record_all(root)
    return root


def read_csv(path: Path) -> dict[str, dict[str, Any]]:
    """Rows as their file says, by experiment."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return {row["row"]: row for row in rows if not row["changes"]}


def test_csv_has_every_number_of_every_row(root: Path, tmp_path: Path) -> None:
    write_tables(load_sources(root), "csv", tmp_path / "csv")
    table1 = read_csv(tmp_path / "csv" / "table1.csv")
    ours = table1[ROW]
    assert [ours[key] for key in ("paper", "ours", "seeds", "tolerance", "within")] == [
        "67.1",
        "66.5",
        "2",
        "0.5",
        "False",
    ]
    assert float(ours["difference"]) == pytest.approx(-0.6)
    assert float(ours["spread"]) == pytest.approx(0.5**0.5)
    assert ours["multiply_adds"] == "13200000"  # of the record, which make_run() wrote
    assert len(ours["records"].split()) == 2
    plain = table1["table1/shufflenetv2_0.5x"]
    assert (plain["ours"], plain["within"], plain["multiply_adds"]) == ("", "", "40476448")  # counted, not run
    drconv = read_csv(tmp_path / "csv" / "imagenette_0.5x.csv")[DRCONV]
    assert [float(drconv[key]) for key in ("ours", "paired", "paired_spread", "pairs")] == pytest.approx([81, 3, 2, 3])
    point = read_csv(tmp_path / "csv" / "figure4.csv")["fig4/drconv_shufflenetv2_0.5x"]
    assert (point["paper"], point["ours"]) == ("67.1", "66.5")  # Table 1's run is the figure's


def test_every_row_of_every_table_has_its_counted_cost(root: Path, tmp_path: Path) -> None:
    names = line_tables(load_sources(root))
    assert {"table1", "table2", "table3", "figure4", "regions", "spatial"} <= set(names)
    for path in write_tables(load_sources(root), "csv", tmp_path):
        for row in csv.DictReader(path.read_text().splitlines()):
            assert int(row["multiply_adds"]) > 0, row
            assert int(row["parameters"]) > 0, row


@pytest.mark.parametrize("format", ["latex", "markdown"])
def test_tables_for_people_are_whole(root: Path, tmp_path: Path, format: str) -> None:
    written = write_tables(load_sources(root), format, tmp_path)
    assert len(written) == len(line_tables(load_sources(root)))
    separator, ending = {"latex": (r"(?<!\\)&", r" \\"), "markdown": (r" \| ", " |")}[format]
    for path in written:
        rows = [line for line in path.read_text().splitlines() if line.endswith(ending)]
        assert len({len(re.split(separator, row)) for row in rows}) == 1, path
        assert len(rows) > 2
    text = (tmp_path / f"table1{FORMATS[format][0]}").read_text()
    row = next(line for line in text.splitlines() if "drconv" in line and "66.50" in line)
    if format == "latex":
        assert row.startswith(
            r"drconv\_shufflenetv2\_0.5x & 67.1 & 66.50 $\pm$ 0.71 & 2 & -0.60, outside 0.5 & 46.0M & "
        )
        assert text.count(r"\begin{") == text.count(r"\end{") == 2
    else:
        assert row.startswith("| drconv_shufflenetv2_0.5x | 67.1 | 66.50 ± 0.71 | 2 | -0.60, outside 0.5 | 46.0M | ")


def test_readme_begins_with_what_was_measured(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert text.index("What was measured here") < text.index("Table 1")
    (row,) = [line for line in text.splitlines() if line.startswith("| Imagenette at 128 pixels, ShuffleNetV2 0.5x")]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert cells[1:5] == ["78.00 ± 1.00 (3 seeds)", "-", "81.00 ± 2.65 (3 seeds)", "+3.00 ± 2.00 (3 pairs)"]
    assert "CIFAR" not in text  # nothing was run there
    assert row_of(root / "README.md", "drconv_shufflenetv2_0.5x")[1:3] == ["67.1", "66.50 ± 0.71 (2 seeds)"]


def test_command_writes_files_and_records_nothing(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(root.rglob("*"))
    arguments = ["tables", "--root", str(root), "--format", "csv", "--output", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", arguments)
    assert run(parse_arguments()) == 0
    assert (tmp_path / "out" / "figure4.csv").is_file()
    assert sorted(root.rglob("*")) == before
    monkeypatch.setattr("sys.argv", arguments[:-2])
    with pytest.raises(SystemExit):
        parse_arguments()
