"""Charts of runs: pixels against values worked out by hand, quantities against a curve written by hand."""

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from drconv.commands import curves
from drconv.figures.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Line, Panel, draw_chart, round_step

SVG = "{http://www.w3.org/2000/svg}"


def paths_of(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """Points of all lines of a colour, those of the legend left out."""
    found = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        if path.get("stroke") == colour and "h" not in path.get("d", ""):
            numbers = [float(number) for number in re.findall(r"[\d.]+", path.get("d", ""))]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def test_points_lie_where_they_belong() -> None:
    svg = draw_chart([Panel("loss", [Line(0, [(0, 1), (50, 2), (100, 3)])])], ["a & b"])
    left, right, top, bottom = LEFT, WIDTH - RIGHT, TOP, HEIGHT - BOTTOM
    (points,) = paths_of(svg, "#0072B2")
    assert points == [(left, bottom), ((left + right) / 2, (top + bottom) / 2), (right, top)]
    assert "a & b" in [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_axes() -> None:
    assert [round_step(width) for width in (0.11, 0.2, 3, 7)] == [0.2, 0.2, 5, 10]
    assert Axis(0, 3000, 0, 1).ticks() == [0, 1000, 2000, 3000]
    logarithmic = Axis(0.1, 1000, 0, 4, True)
    assert logarithmic.ticks() == pytest.approx([0.1, 1, 10, 100, 1000])
    assert logarithmic.place(10) == pytest.approx(2)
    assert logarithmic.place(0) == 0


def test_constant_and_missing_values() -> None:
    assert paths_of(draw_chart([Panel("x", [Line(0, [(1, 5), (2, 5)]), Line(1, [])])], ["a", "b"]), "#0072B2")
    with pytest.raises(ValueError, match="no run has values"):
        draw_chart([Panel("x", [Line(0, [])])], ["a"])


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["curves.py", *arguments])
        curves.main()

    return run


def test_command_reads_folders_and_records(tmp_path: Path, draw: Callable[..., None]) -> None:
    guides = {
        "a": {"usage": [0.5, 0.5], "entropy": 1.0, "logit_std": 0.5, "filter_spread": 0.25},
        "b": {"usage": [0.1, 0.9], "logit_std": 90.0, "filter_spread": 0.75},
    }
    guides["b"]["entropy"] = 0.5
    folder = tmp_path / "outputs" / "recipe.epochs=2,seed0"
    folder.mkdir(parents=True)
    entries = [
        {"step": 0, "split": "train", "loss": 2.0, "top1": 10.0, "regions": guides | {"b": guides["a"]}},
        {"step": 10, "split": "train", "loss": 1.0, "top1": 20.0, "regions": guides},
        {"step": 10, "split": "val", "top1": 30.0, "loss": 1.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    plain = [{key: value for key, value in entry.items() if key != "regions"} for entry in entries]
    (tmp_path / "plain.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in plain))
    panels = ["loss", "usage", "spread", "entropy", "val", "filters"]
    draw(str(folder.relative_to(tmp_path)), "plain net=plain.json", "--panels", *panels, "--out", "a.svg")
    svg = (tmp_path / "a.svg").read_text()
    assert len(paths_of(svg, "#0072B2")) == 6
    assert len(paths_of(svg, "#D55E00")) == 2  # the plain network has no guides
    usage = paths_of(svg, "#0072B2")[1]  # from 0.5 at step 0 to 0.9 at step 10, the ends of both axes
    assert usage == [(WIDTH + LEFT, HEIGHT - BOTTOM), (2 * WIDTH - RIGHT, TOP)]
    assert paths_of(svg, "#0072B2")[5][1][1] < paths_of(svg, "#0072B2")[5][0][1]  # from 0.25 up to 0.5, the mean
    assert ">plain net</text>" in svg
    for guide in guides.values():
        del guide["filter_spread"]  # as in a run made before it was logged
    (tmp_path / "old.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    with pytest.raises(SystemExit, match="no run has values for the panel 'spread of the filters"):
        draw("old.jsonl", "--panels", "filters", "--out", "old.svg")
    for step, entry in enumerate(entries):
        entry["gradients"] = {"guide": 0.0, "generator": 10.0**step}  # a frozen guide
    (tmp_path / "new.jsonl").write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    draw("new.jsonl", "--panels", "generator_gradient", "--out", "new.svg")
    (rising,) = paths_of((tmp_path / "new.svg").read_text(), "#0072B2")
    assert rising == [(LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, TOP)]
    with pytest.raises(SystemExit, match="no run has values for the panel 'gradient norm of the guides"):
        draw("new.jsonl", "--panels", "guide_gradient", "--out", "frozen.svg")
    with pytest.raises(SystemExit, match="is not there"):
        draw("x=missing", "--out", "b.svg")
