"""The page: its numbers are those of the records, it is whole in itself, and foreign names stay text."""

import json
import re
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from drconv.commands import report
from drconv.config import Config
from drconv.errors import ConfigError
from drconv.report.confusion import confusion_html, count_confusion
from drconv.report.html import page, table
from models import create_model
from tests.project import DRCONV, PLAIN, finish_untrained, make_project, make_run, record_all

ROW = "table1/drconv_shufflenetv2_0.5x"
VOID = {"meta", "link", "br", "img", "rect", "path", "circle", "image"}


class Rows(HTMLParser):
    """Cells of the table rows that have a name, and whether every element that was opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.loaded: list[str] = []
        self._open: list[str] = []
        self._name = ""
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loaded += [str(given[key]) for key in ("src", "href", "xlink:href") if key in given]
        if tag == "tr":
            self._name = given.get("data-name") or ""
            if self._name:
                self.rows.setdefault(self._name, []).append([])
        if tag == "td" and self._name:
            self.rows[self._name][-1].append("")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._name and self._open[-1:] == ["td"]:
            self.rows[self._name][-1][-1] += data


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("report") / "project")
    for seed, top1 in enumerate((66.4, 67.3)):
        make_run(root, ROW, seed, top1)
    for seed, (plain, ours) in enumerate(((77.25, 80.5), (78.5, 79.125), (79.0, 84.75))):
        make_run(root, PLAIN, seed, plain)
        make_run(root, DRCONV, seed, ours)
    make_run(root, DRCONV, 0, 50.0, "recipe.optimizer.lr=0.3")
    record_all(root)
    return root


@pytest.fixture
def finished_run(make_config: Callable[..., Config]) -> Path:
    """A run of the digits that was never trained."""
    config = make_config()
    return finish_untrained(config, create_model(config.model, 10, 32), list("0123456789"))


@pytest.fixture(scope="module")
def written(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write_report(root, [], path, [])
    return path.read_text()


def test_numbers_are_those_of_the_records(root: Path, written: str) -> None:
    rows = Rows(written).rows
    records = {path.stem: json.loads(path.read_text()) for path in (root / "results/runs").glob("*.json")}
    assert len(records) == 9
    values: dict[str, list[float]] = {}
    for stem, record in records.items():
        value = record["metrics"]["val/top1"]
        ((run, shown, training, steps, minutes, date),) = rows[stem]
        assert run.startswith(f"seed {record['seed']}, {record['config_hash'][:8]}")
        assert (shown, training) == (f"{value:.2f}", f"{value + 3:.2f}")
        assert (steps, minutes, date) == ("2,960", "90", record["date"])
        changed = " recipe.optimizer.lr=0.3" if record["config"]["recipe"]["optimizer"]["lr"] == 0.3 else ""
        values.setdefault(record["experiment"]["id"] + changed, []).append(value)
    for name, own in values.items():
        cells = rows[name][0]
        expected = f"{statistics.fmean(own):.2f}" + (f" ± {statistics.stdev(own):.2f}" if len(own) > 1 else "")
        assert expected in cells
    assert rows[ROW][0][1:5] == ["67.1", "66.85 ± 0.64", "2", "-0.25, within 0.5"]
    assert "+3.21 ± 2.56" in rows[DRCONV][0]  # 3.25, 0.625, 5.75


def test_page_is_whole_in_itself(written: str) -> None:
    found = Rows(written)
    assert all(link.startswith(("#", "data:")) for link in found.loaded)
    assert "<script" not in written
    assert not re.search(r"@import|url\(", written)
    assert 'name="viewport"' in written
    assert "prefers-color-scheme: dark" in written
    assert "@media print" in written


def test_differences_have_their_sentence_and_runs(written: str) -> None:
    rows = Rows(written).rows
    assert "the last one, never the best" in rows["D10"][0][1]
    assert (rows["D10"][0][2], rows["D1"][0][2]) == ("9", "6")  # the plain network has no generator
    assert set(rows) >= {f"D{number}" for number in range(1, 12)}


def test_curves_have_a_line_for_each_run(written: str) -> None:
    title = written.index(f">{PLAIN}: 3 runs<")
    part = written[title : written.index("</details>", title)]
    assert part.count("<circle") == 3  # one evaluation each
    assert [float(x) for x in re.findall(r"seed (\d), \w{8}</li>", part)] == [0, 1, 2]


def test_foreign_names_stay_text() -> None:
    evil = '<script>alert("x")</script>\x1b[31m'
    text = page(evil, "", {evil: table([evil], [[evil]], [evil])})
    assert "<script" not in text
    assert "\x1b" not in text
    Rows(text)


def test_confusion_by_hand() -> None:
    logits = torch.eye(3)[torch.tensor([0, 1, 1, 2, 2, 2])]
    counts = count_confusion(logits, torch.tensor([0, 0, 1, 2, 2, 0]), 3)
    assert counts.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 2]]
    html = confusion_html(counts, ["ant", "bee", "cat"])
    cells = re.findall(r"<tr><td>(\w+)</td><td>([\d.]+)</td><td>(\d)</td><td class=\"text\">([^<]+)</td>", html)
    assert cells == [("ant", "33.3", "3", "bee (1)"), ("bee", "100.0", "1", "-"), ("cat", "100.0", "2", "-")]
    assert "rgba(var(--heat), 0.20)" in html
    assert count_confusion(logits, torch.zeros(6), 50).shape == (50, 50)
    assert "confusion" not in confusion_html(torch.eye(50, dtype=torch.int64), [])


def test_a_run_folder_shows_masks_and_classes_where_its_data_are(
    finished_run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    report.write_report(root, [finished_run], tmp_path / "a.html", [])
    text = (tmp_path / "a.html").read_text()
    Rows(text)
    assert text.count("data:image/png;base64") >= report.NUM_PICTURES * 3
    top1 = re.search(r"<p>360 pictures, top-1 ([\d.]+)</p>", text)
    assert top1
    matrix = re.search(r'<table class="confusion">.*?</table>', text, re.S)
    assert matrix
    counts = [[int(n or 0) for n in re.findall(r"<td[^>]*>(\d*)</td>", row)[1:]] for row in matrix[0].split("<tr>")[2:]]
    assert sum(map(sum, counts)) == 360
    assert 100 * sum(row[i] for i, row in enumerate(counts)) / 360 == pytest.approx(float(top1[1]), abs=0.01)
    (finished_run / "model.safetensors").unlink()
    report.write_report(root, [finished_run], tmp_path / "b.html", [])
    assert "model.safetensors is missing" in (tmp_path / "b.html").read_text()


def test_words_of_the_command(tmp_path: Path) -> None:
    runs, output, overrides = report.split_words([str(tmp_path), "output=a.html", "data.root=x"])
    assert (runs, output, overrides) == ([tmp_path], Path("a.html"), ["data.root=x"])
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        report.split_words(["output=a.pdf"])
    with pytest.raises(ConfigError, match="nowhere is not there"):
        report.split_words(["nowhere"])
