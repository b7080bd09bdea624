"""Records without run folders: statistics by hand, thinned curves, the hash of a configuration."""

from typing import Any

import pytest

from drconv.identity import config_hash, select_binding
from drconv.results.collect import thin_curve
from drconv.results.provenance import is_dirty
from drconv.results.summary import compute_spread


def test_spread_by_hand() -> None:
    spread = compute_spread([70.0, 72.0, 77.0])  # mean 73, squares 9 + 1 + 16 = 26, over 2
    assert spread.mean == pytest.approx(73)
    assert spread.deviation == pytest.approx(13**0.5)
    assert spread.count == 3
    assert compute_spread([5.0]).deviation is None


def test_thinned_curve_keeps_evaluations_and_ends() -> None:
    entries: list[dict[str, Any]] = []
    for step in range(1, 1001):
        regions = {"stage2.0.guide": {"usage": [1 / 3, 2 / 3]}}
        entries.append({"step": step, "split": "train", "loss": 1 / step, "data_wait": 0.1, "regions": regions})
        if step % 100 == 0:
            entries.append({"step": step, "split": "val", "top1": 100 / 7})
    thin = thin_curve(entries)
    train = [entry for entry in thin if entry["split"] == "train"]
    assert [entry for entry in thin if entry["split"] == "val"] == [entry for entry in entries if "top1" in entry]
    assert len(train) <= 100
    assert (train[0]["step"], train[-1]["step"]) == (1, 1000)
    assert train[0] == {
        "step": 1,
        "split": "train",
        "loss": 1.0,
        "regions": {"stage2.0.guide": {"usage": [0.3333, 0.6667]}},
    }
    assert 10 < sum("regions" in entry for entry in train) <= 30


def test_hash_ignores_where_a_run_ran_and_nothing_else() -> None:
    config = {
        "seed": 0,
        "run": "a",
        "data": {"root": "/x", "name": "digits"},
        "runtime": {"workers": 2, "precision": "fp32"},
    }
    elsewhere = {
        "seed": 0,
        "run": "b",
        "data": {"root": "/y", "name": "digits"},
        "runtime": {"workers": 9, "precision": "fp32"},
    }
    other = {**config, "runtime": {"workers": 2, "precision": "bf16"}}
    assert select_binding(config) == {"seed": 0, "data.name": "digits", "runtime.precision": "fp32"}
    assert config_hash(select_binding(config)) == config_hash(select_binding(elsewhere))
    assert config_hash(select_binding(config)) != config_hash(select_binding(other))


def test_new_source_files_make_a_checkout_dirty_and_others_do_not() -> None:
    assert not is_dirty("")
    assert not is_dirty("?? notes.txt\n?? outputs/a.png")
    assert is_dirty("?? models/mine.py")
    assert is_dirty("?? notes.txt\n?? configs/recipe/mine.yaml")
    assert is_dirty(" M README.md")
