"""The table of forms: planted fits at their worst, the test bed's rows beside them."""

import json
from pathlib import Path

import pytest

from drconv.planted import forms as planted
from drconv.results.forms import FORMS, forms_table, planted_table, read_fits
from scripts.planted import identify, wanted
from scripts.planted import parse_options as parse_planted

ROOT = Path(__file__).parents[1]
FIT = {"form": "two_parts", "regions": 4, "steps": 800, "lr": 0.1, "seed": 0, "explained": 0.999, "agreement": 0.99}
REST = {"filter_spread": 0.5, "largest_share": 0.3}


def test_ranges_and_the_worst(tmp_path: Path) -> None:
    fits = [FIT | REST, FIT | REST | {"seed": 1, "explained": 0.95}, FIT | REST | {"regions": 8, "agreement": 0.8}]
    fits += [{"form": "plain", "regions": 4, "steps": 800, "lr": 0.1, "seed": 0, "explained": 0.2}]
    (tmp_path / "layer.json").write_text(json.dumps({"fits": fits}))
    read = read_fits(tmp_path)
    assert read == {"layer": fits, "network": []}
    rows = [row[:4] + row[-1:] for row in planted_table("layer", read["layer"]).rows]
    assert rows[0] == ["`two_parts`", "4", "0.950 to 0.999", "0.990", "2"]
    assert rows[1][1:4] == ["8", "0.999", "0.800"]
    assert rows[2] == ["`plain`", "-", "0.200", "-", "1"]
    by_form = {row[0]: row for row in forms_table(read, [], {}).rows}
    default = next(row for title, row in by_form.items() if "the default** (D11)" in str(title))
    assert default[1:4] == ["0.950", "0.800", "not run"]
    assert planted_table("network", []).rows[0][0] == "not run"


def test_forms_exist() -> None:
    for _, name, experiment in FORMS:
        assert name in planted.FORMS
        assert (ROOT / "configs/experiment" / f"{experiment}.yaml").is_file()


def test_fits_are_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["planted.py", "--forms", "two_parts", "plain", "--seeds", "0", "1"])
    keys = wanted(parse_planted())
    assert len(keys) == len(set(keys)) == 3 * 2 + 2
    assert identify(FIT | {"depth": 1}) in keys
