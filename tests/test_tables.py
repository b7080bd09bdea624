"""Tables come from records: statistics against numbers worked out by hand, and every way of cheating is caught."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drconv.identity import config_hash, select_binding
from drconv.results.check import find_problems
from drconv.results.collect import collect, find_results
from drconv.results.read_records import RecordError
from drconv.results.render import PAGES_WITH_BLOCKS
from drconv.results.sources import load_sources
from drconv.results.tables import make_tables
from tests.project import (
    DRCONV,
    PLAIN,
    ROOT,
    edit,
    make_project,
    make_run,
    page_with,
    problems_of,
    record_all,
    row_of,
    write_pages,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_project(tmp_path)


def test_nothing_run_gives_not_run_everywhere(root: Path) -> None:
    assert problems_of(root) == []
    for name in ("table1", "imagenette_0.5x", "inside"):
        rows = make_tables(load_sources(root))[name].rows
        assert rows
        assert all("not run" in row for row in rows)
    assert row_of(root / "README.md", "drconv_shufflenetv2_0.5x")[1:3] == ["67.1", "not run"]


def test_comparison_by_hand(root: Path) -> None:
    for seed, plain, ours in ((0, 77.0, 80.0), (1, 78.0, 79.0), (2, 79.0, 84.0)):
        make_run(root, PLAIN, seed, plain)
        make_run(root, DRCONV, seed, ours)
    make_run(root, DRCONV, 7, 90.0)  # no plain run of this seed: in the mean, not in the pairs
    assert len(record_all(root)) == 7
    assert problems_of(root) == []
    page = root / "docs" / "evidence.md"
    plain, ours = row_of(page, PLAIN), row_of(page, DRCONV)
    assert plain[1:4] == ["78.00 ± 1.00 (3 seeds)", "-", "81.00"]
    assert ours[1] == "83.25 ± 4.99 (4 seeds)"  # squares 10.5625 + 18.0625 + 0.5625 + 45.5625 = 74.75, over 3
    assert ours[2] == "+3.00 ± 2.00 (3 pairs)"  # 3, 1, 5
    assert ours[4:8] == ["2,960", "13.2M", "0.35M", ours[7]]
    assert ours[7].startswith("1.5 h, 1 x ")
    assert page.read_text().startswith("# Words of a person\n")
    assert page.read_text().endswith("\n\nMore words.\n")
    assert f"../results/runs/{DRCONV.replace('/', '__')}-seed7-" in ours[9]


def test_a_shared_run_is_in_both_rows_and_changed_ones_in_one(root: Path) -> None:
    own, changed = "table1/drconv_shufflenetv2_0.5x", "model.drconv.filter_sharing=0.5"
    make_run(root, own, 0, 67.0)
    make_run(root, "ablation/regions/m1", 0, 60.0)
    make_run(root, own, 0, 50.0, changed)
    make_run(root, "fig4/drconv_shufflenetv2_0.5x", 1, 68.0)  # as recorded before rows could share a run
    record_all(root)
    assert problems_of(root) == []
    tables = make_tables(load_sources(root))
    for name, row in (("regions", "ablation/regions/m8"), ("figure4", "fig4/drconv_shufflenetv2_0.5x")):
        (cells,) = [cells for cells in tables[name].rows if str(cells[0]).startswith(f"`{row}`")]
        assert cells[0] == f"`{row}` (the run of `{own}`)"
        assert cells[1] == "67.50 ± 0.71 (2 seeds)"
    assert tables["regions"].rows[3][:3] == [f"`ablation/regions/m8` (the run of `{own}`)", cells[1], "+7.00 (1 pair)"]
    shown = [str(cells[0]) for cells in tables["table1"].rows]
    assert f"`drconv_shufflenetv2_0.5x` with `{changed}`" in shown


def test_cost_is_shown_without_a_run(root: Path) -> None:
    cells = row_of(root / "results" / "README.md", "drconv_shufflenetv2_0.5x")
    assert cells[2:8] == ["not run", "-", "46M", "44.8M", "43.1M", "2.19M"]
    assert row_of(root / "README.md", "mobilenetv2_1.0x")[3:5] == ["300M", "300.8M"]
    (root / "results" / "costs.yaml").unlink()
    assert any("has no cost of table1/drconv_shufflenetv2_0.5x" in problem for problem in problems_of(root))


def test_a_folder_of_records_alone_has_a_page(tmp_path: Path) -> None:
    make_run(tmp_path, PLAIN, 0, 77.0)
    record_all(tmp_path)
    assert problems_of(tmp_path) == []
    page = tmp_path / "results" / "README.md"
    assert "77.00 (1 seed)" in page.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outputs", "results"]


def test_changed_settings_are_a_row_of_their_own(root: Path) -> None:
    make_run(root, PLAIN, 0, 77.0)
    make_run(root, DRCONV, 0, 80.0, "recipe.epochs=2")
    make_run(root, "table1/drconv_shufflenetv2_0.5x", 0, 67.0, "recipe.steps=2960", "data.image_size=128")
    record_all(root)
    assert problems_of(root) == []
    text = (root / "docs" / "evidence.md").read_text()
    assert f"| `{DRCONV}` | not run |" in text
    assert f"| `{DRCONV}` with `recipe.epochs=2.0` | 80.00 (1 seed) | - |" in text  # the plain run was longer
    table1 = (root / "results" / "README.md").read_text()
    assert "| `drconv_shufflenetv2_0.5x` | 67.1 | not run |" in table1
    assert "with `data.image_size=128 recipe.steps=2960` | 67.1 | 67.00 (1 seed) | - |" in table1


def test_baseline_has_its_own_network_and_the_same_recipe(root: Path) -> None:
    make_run(root, "small/inside/drconv", 0, 80.0)
    make_run(root, "small/inside/drconv", 0, 60.0, "model.drconv.regions=2")
    make_run(root, "small/inside/drconv", 0, 70.0, "recipe.epochs=2")
    make_run(root, "small/inside/guide_own", 0, 71.5, "recipe.epochs=2")
    make_run(root, "small/inside/guide_own", 0, 78.5, "recipe.optimizer.guide_lr=0.1")
    make_run(root, "small/inside/drconv", 0, 66.0, "recipe.optimizer.guide_lr=0.1")
    make_run(root, "small/inside/drconv", 0, 72.0, "recipe.name=mine", "recipe.epochs=3")
    make_run(root, "small/inside/guide_own", 0, 72.5, "recipe.name=mine", "recipe.epochs=3")
    make_run(root, "small/inside/guide_own", 1, 50.0, "runtime.precision=bf16")
    record_all(root)
    text = (root / "results" / "README.md").read_text()
    assert "`recipe.epochs=3.0 recipe.name=mine` | 72.50 (1 seed) | +0.50 (1 pair)" in text
    assert "`small/inside/drconv` | 80.00 (1 seed) | - |" in text
    assert "`small/inside/drconv` with `recipe.epochs=2.0` | 70.00 (1 seed) | - |" in text
    assert "`small/inside/drconv` with `model.drconv.regions=2` | 60.00 (1 seed) | -20.00 (1 pair) |" in text
    assert "`small/inside/drconv` with `recipe.optimizer.guide_lr=0.1` | 66.00 (1 seed) | -14.00 (1 pair) |" in text
    assert "`small/inside/guide_own` with `runtime.precision=bf16` | 50.00 (1 seed) | - |" in text
    assert "`small/inside/guide_own` with `recipe.epochs=2.0` | 71.50 (1 seed) | +1.50 (1 pair)" in text
    assert "`small/inside/guide_own` with `recipe.optimizer.guide_lr=0.1` | 78.50 (1 seed) | -1.50 (1 pair)" in text


def test_table_1_names_difference_and_tolerance(root: Path) -> None:
    make_run(root, "table1/drconv_shufflenetv2_0.5x", 0, 66.5)
    make_run(root, "table1/drconv_shufflenetv2_0.5x", 1, 66.3)
    record_all(root)
    cells = row_of(root / "results" / "README.md", "drconv_shufflenetv2_0.5x")
    assert cells[1:8] == ["67.1", "66.40 ± 0.14 (2 seeds)", "-0.70, outside 0.5", "46M", "13.5M", "13.2M", "0.35M"]


def test_hand_edited_table_is_caught(root: Path) -> None:
    make_run(root, PLAIN, 0, 77.0)
    record_all(root)
    page = root / "docs" / "evidence.md"
    page.write_text(page.read_text().replace("77.00 (1 seed)", "78.00 (1 seed)"))
    (problem,) = problems_of(root)
    assert problem.startswith("docs/evidence.md: 2 lines differ")


def test_missing_record_is_caught(root: Path) -> None:
    make_run(root, PLAIN, 0, 77.0)
    record_all(root)[0].unlink()
    assert any("docs/evidence.md: a number has no record" in problem for problem in problems_of(root))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content["metrics"].update({"val/top1": 79.0}), "top1 is 79.0 here and 77.0"),
        (lambda content: content.update(seed=3), "seed=3, but config.seed=0"),
        (lambda content: content["config"]["recipe"]["optimizer"].update(lr=0.5), "config_hash is not that of config"),
        (lambda content: content["experiment"].update(id=DRCONV), "experiment differs from config.experiment"),
        (lambda content: content.update(status="smoke"), "only complete runs are recorded"),
        (lambda content: content.update(steps=10), "step is 10 here"),
        (lambda content: content.pop("cost"), "lacks cost.parameters, cost.multiply_adds"),
        (lambda content: content.update(metrics=[1.0]), "lacks metrics"),
        (lambda content: content.update(metrics={}), "has no metric"),
        (lambda content: content["config"].pop("experiment"), "lacks config.experiment"),
        (lambda content: content["metrics"].update({"val/loss": None}), "has no number for its metric val/loss"),
        (lambda content: content["metrics"].update({"val/loss": math.nan}), "has no number for its metric val/loss"),
        (lambda content: content.update(schema=99), "a later version wrote it: schema 99"),
        (lambda content: content.update(schema="a"), "schema 'a' is not a number"),
        (lambda content: content["config"].update(task="x"), "sections that are no sections"),
        (lambda content: content["experiment"].update(id=5), "lacks experiment.id"),
        (lambda content: content["experiment"].update(metric=5), "lacks experiment.metric"),
        (lambda content: content["train"].update(top1=99.0), "train.top1 is 99.0 here and 80.0"),
        (lambda content: content.update(wall_time_s=1.0), "wall_time_s differs from that of"),
        (lambda content: content["cost"].update(multiply_adds=1), "cost differs from that of"),
    ],
)
def test_tampered_record_is_caught(root: Path, change: Callable[[dict[str, Any]], Any], expected: str) -> None:
    make_run(root, PLAIN, 0, 77.0)
    (path,) = record_all(root)
    edit(path, change)
    assert any(expected in problem for problem in problems_of(root))


def test_other_weights_are_caught_where_they_lie(root: Path) -> None:
    folder = make_run(root, PLAIN, 0, 77.0)
    record_all(root)
    (folder / "model.safetensors").write_bytes(b"other")
    assert any("does not match" in problem and "sha256" in problem for problem in problems_of(root))
    elsewhere = root.with_name("elsewhere")
    folder.rename(elsewhere)
    assert problems_of(root) == []
    (problem,) = find_problems(root, load_sources(root), [elsewhere])
    assert "sha256" in problem


@pytest.mark.parametrize("line", ['{"step": 2960, "split', "[1]", '{"split": "val"}', '{"step": "2", "split": "val"}'])
def test_damaged_curve_is_caught(root: Path, line: str) -> None:
    make_run(root, PLAIN, 0, 77.0)
    (path,) = record_all(root)
    curve = path.with_suffix(".jsonl")
    curve.write_text(curve.read_text() + line)
    assert all("line 3, is no entry of a curve" in problem for problem in problems_of(root))
    assert problems_of(root)


def test_missing_page_and_missing_block_are_caught(root: Path) -> None:
    page = root / "docs" / "evidence.md"
    page.write_text(page_with(*(name for name in PAGES_WITH_BLOCKS["docs/evidence.md"] if name != "cifar10")))
    (problem,) = problems_of(root)
    assert "has no block for cifar10" in problem
    page.unlink()
    (problem,) = problems_of(root)
    assert "evidence.md is not there" in problem


def test_training_accuracy_is_the_mean_of_the_last_tenth(root: Path) -> None:
    folder = make_run(root, PLAIN, 0, 77.0)  # its last entry has 80.0 at step 2960
    values = ((2650, 10.0), (2950, 70.0))  # every 50 steps: an entry covers 50 of them, the last one 10
    earlier = [{"step": step, "split": "train", "loss": 1.0, "top1": top1} for step, top1 in values]
    log = folder / "metrics.jsonl"
    log.write_text("".join(f"{json.dumps(entry)}\n" for entry in earlier) + log.read_text())
    record_all(root)
    assert row_of(root / "docs" / "evidence.md", PLAIN)[3] == "71.67"


def test_runs_from_other_weights_are_other_runs(root: Path) -> None:
    make_run(root, PLAIN, 0, 77.0, "weights=a/model.safetensors")
    make_run(root, PLAIN, 0, 78.0, "weights=/b/model.safetensors")
    assert len(record_all(root)) == 2
    assert problems_of(root) == []


def test_a_repeated_run_must_give_the_recorded_number(root: Path) -> None:
    folder = make_run(root, PLAIN, 0, 77.0)
    record_all(root)
    again = root / "again"
    shutil.copytree(folder, again)
    edit(again / "result.json", lambda content: content.update(wall_time_s=1.0, date="2000-01-01 00:00 UTC"))
    assert find_problems(root, load_sources(root), [again]) == []
    edit(again / "result.json", lambda content: content["metrics"].update({"val/top1": 1.0}))
    assert find_problems(root, load_sources(root), [folder, again]) == []
    (problem,) = find_problems(root, load_sources(root), [again])
    assert "metrics differs from that of" in problem


def test_record_is_never_replaced(root: Path) -> None:
    folder = make_run(root, PLAIN, 0, 77.0)
    (path,) = record_all(root)
    before = path.read_bytes()
    assert collect(folder / "result.json", path.parent) is None
    shutil.rmtree(folder)
    make_run(root, PLAIN, 0, 78.0)
    with pytest.raises(RecordError, match="another outcome of this run"):
        record_all(root)
    assert path.read_bytes() == before


def test_two_records_of_one_seed_are_caught(root: Path) -> None:
    make_run(root, PLAIN, 0, 77.0)
    (path,) = record_all(root)
    content = json.loads(path.read_text())
    content["experiment"]["metric"] = content["config"]["experiment"]["metric"] = "val/top1"
    content["config_hash"] = config_hash(select_binding(content["config"]))
    other = path.with_name(f"{path.stem[:-8]}{content['config_hash'][:8]}.json")
    other.write_text(json.dumps(content))
    shutil.copy(path.with_suffix(".jsonl"), other.with_suffix(".jsonl"))
    write_pages(root)
    (problem,) = problems_of(root)
    assert "seed 0 has 2 records" in problem


def test_unfinished_and_foreign_runs_are_refused(root: Path) -> None:
    folder = make_run(root, PLAIN, 0, 77.0)
    result = folder / "result.json"
    edit(result, lambda content: content["experiment"].update(id=None))
    with pytest.raises(RecordError, match="belongs to no experiment"):
        collect(result, root / "results" / "runs")
    result.write_text("{")
    with pytest.raises(RecordError, match="is not JSON"):
        collect(result, root / "results" / "runs")
    folder.rename(folder.with_name("seed0.old1"))
    assert find_results([root / "outputs"]) == []


def test_record_names_no_path_of_the_machine(root: Path) -> None:
    make_run(root, PLAIN, 0, 77.0)
    (path,) = record_all(root)
    assert "/somewhere" not in path.read_text()
    assert json.loads(path.read_text())["config"]["data"]["root"] == "set"


def test_command_checks_without_torch(root: Path) -> None:
    script = ROOT / "scripts" / "tables.py"
    run = subprocess.run(
        [sys.executable, "-X", "importtime", script, "check", "--root", root], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-500:]
    assert "torch" not in run.stderr
    (root / "results" / "README.md").write_text("")
    broken = subprocess.run([sys.executable, script, "check", "--root", root], capture_output=True, text=True)
    assert broken.returncode == 1
    assert len(broken.stderr.splitlines()) == 1
