"""scripts/cost.py: our networks cost what the paper prints, counted as the paper counts."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from drconv import count_cost
from drconv.commands.cost import FITTING_WIDTHS, NOTES, Row, measure, render, table_rows
from drconv.model_files import load_model_config
from drconv.results.costs import cost_problems, read_costs, render_costs
from drconv.results.experiments import Experiments
from drconv.results.sources import load_sources
from models import create_model

ROOT = Path(__file__).parents[1]
MISFIT = "table1/drconv_shufflenetv2_0.5x"


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return table_rows()


def test_rows_cost_what_the_paper_prints(rows: list[Row]) -> None:
    """Within 1M or 2.5 %; the rows marked * (D4), the released form and one misfit are explained instead."""
    paper = yaml.safe_load((ROOT / "results/paper.yaml").read_text())
    starred = {f"table1/{name}" for name, row in paper["table1"].items() if row.get("starred")}
    released = {f"table1/{name}" for name, row in paper["table1"].items() if row.get("released")}
    assert set(NOTES) == starred | released | {MISFIT}
    assert len(rows) == 25
    for row in rows:
        assert row.printed is not None
        if row.name not in NOTES:
            assert abs(row.paper_convention - row.printed) <= max(1, 0.025 * row.printed), row
    misfit = next(row for row in rows if row.name == MISFIT)
    assert misfit.paper_convention == pytest.approx(46, abs=1.2)


def test_kept_counts_are_those_of_fresh_networks(rows: list[Row]) -> None:
    costs = read_costs(ROOT / "results/costs.yaml")
    for row in rows:
        kept = costs[row.name]
        assert kept.parameters == row.parameters
        assert kept.multiply_adds / 1e6 == pytest.approx(row.true, abs=0.006)
        assert kept.paper_multiply_adds / 1e6 == pytest.approx(row.paper_convention, abs=0.006)
    faces = costs["table2/mobilefacenet"]
    assert faces.input == (3, 112, 96)
    assert f"{faces.multiply_adds / 1e6:.1f}" == "189.4"


def test_kept_counts_are_those_of_the_recorded_runs() -> None:
    """Training counts its network itself: 106 records of small networks with 10 classes, none of a checkout without."""
    sources = load_sources(ROOT)
    compared = 0
    for group in sources.groups:
        if not group.changes:
            kept = asdict(sources.costs[group.id])
            recorded = group.records[0].content["cost"]
            assert {key: kept[key] for key in recorded} == recorded, group.id
            compared += 1
    assert compared or not sources.records


def test_a_detectors_cost_is_that_of_body_and_pyramid() -> None:
    """What the heads cost depends on what is proposed, so that a whole detector has no number of its own."""
    kept = read_costs(ROOT / "results/costs.yaml")["table3/mask_rcnn_r50"]
    assert kept.input == (3, 800, 1088)  # 480x640 at 800/1333, in multiples of 32
    with torch.device("meta"):
        network = create_model(load_model_config("mask_rcnn_r50"), 80, None)
        counter = FlopCounterMode(display=False)
        with counter:
            network.backbone(torch.empty(1, *kept.input))  # type: ignore[operator]
    assert kept.multiply_adds == counter.get_total_flops() // 2
    assert kept.parameters == sum(parameter.numel() for parameter in network.parameters())


def test_rows_entries_and_configurations_fit() -> None:
    experiments = Experiments(ROOT / "configs")
    paper = yaml.safe_load((ROOT / "results/paper.yaml").read_text())
    costs = read_costs(ROOT / "results/costs.yaml")
    assert list(cost_problems(costs, experiments, paper)) == []
    assert render_costs(costs) == (ROOT / "results/costs.yaml").read_text()
    changed = dict(costs)
    del changed["table1/shufflenetv2_0.5x"]
    changed["table2/mobilefacenet"] = replace(costs["table2/mobilefacenet"], model="0" * 12)
    changed["table9/none"] = costs["table2/mobilefacenet"]
    problems = "\n".join(cost_problems(changed, experiments, paper))
    assert problems.count("\n") == 2
    for words in ("has no cost of table1/shufflenetv2_0.5x", "another network for table2/mobilefacenet", "table9/none"):
        assert words in problems


def paper_cost(model: str, **options: object) -> float:
    """Millions by the paper's convention, with other options of the network or of DRConv."""
    config = load_model_config(model)
    for name, value in options.items():
        setattr(config if hasattr(config, name) else config.drconv, name, value)
    return count_cost(create_model(config, 1000, 224), 224).paper_multiply_adds / 1e6


def test_notes_are_true() -> None:
    """The widths would explain the starred rows, and a guide per convolution one row of the misfit's network."""
    printed = yaml.safe_load((ROOT / "results/paper.yaml").read_text())["table1"]
    for name, width in FITTING_WIDTHS.items():
        row, claimed = name.removeprefix("table1/"), printed[name.removeprefix("table1/")]["madds"]
        cost = paper_cost(row.replace("_lite", ""), width=width)
        assert cost == pytest.approx(claimed, abs=max(1, 0.025 * claimed)), name
        assert f"model.width={width} " in NOTES[name]
    # At 0.86 of the width one row is still too cheap and another already too dear: no factor fits both.
    assert paper_cost("drconv_shufflenetv2_0.5x", width=0.43) < printed["drconv_lite_shufflenetv2_0.5x"]["madds"] - 1
    assert paper_cost("drconv_shufflenetv2_1x", width=0.86) > 1.025 * printed["drconv_lite_shufflenetv2_1x"]["madds"]
    for row, expected in (("drconv_shufflenetv2_0.5x", 46.2), ("drconv_shufflenetv2_1x", 160.1)):
        assert paper_cost(row, guide="own") == pytest.approx(expected, abs=0.05)
        assert f"{expected}M" in NOTES[MISFIT]


def test_drconv_adds_its_guides_and_generators(rows: list[Row]) -> None:
    """By hand, from the shapes of ShuffleNetV2 1x: m C P for guides, 2 m C for gates, m C O for filters or C P."""
    blocks = [(24, 58, 34, 56)] + 3 * [(58, 58, 58, 28)]
    blocks += [(116, 116, 116, 28)] + 7 * [(116, 116, 116, 14)]
    blocks += [(232, 232, 232, 14)] + 3 * [(232, 232, 232, 7)]
    guide = gate = filters = scales = 0
    for inputs, middle, outputs, size in blocks:
        stride = 2 if size in (56, 28, 14) and (inputs, size) in {(24, 56), (116, 28), (232, 14)} else 1
        guide += 8 * inputs * size**2
        gate += 8 * (inputs + middle)
        filters += 8 * middle * (inputs + outputs)
        scales += size**2 * inputs + (size // stride) ** 2 * middle
    by_name = {row.name: row for row in rows}
    plain, ours = by_name["table1/shufflenetv2_1x"], by_name["table1/drconv_shufflenetv2_1x"]
    assert ours.true - plain.true == pytest.approx((guide + gate + scales) / 1e6, abs=0.02)
    printed = ours.paper_convention - plain.paper_convention
    assert printed == pytest.approx((guide + 2 * gate + filters) / 1e6, abs=0.02)


def test_the_released_form_costs_more_than_the_paper_prints(rows: list[Row]) -> None:
    """By hand: each of the 8 regions mixes 8 experts of C O weights, where the grouped generator scales one."""
    by_name = {row.name: row for row in rows}
    ours, released = (by_name[f"table1/drconv_{form}shufflenetv2_1x"] for form in ("", "released_"))
    channels = [(24, 58), (58, 58)] + 6 * [(58, 58)] + [(116, 116)] * 16 + [(232, 232)] * 8
    assert released.paper_convention - ours.paper_convention == pytest.approx(
        (64 - 8) * sum(a * b for a, b in channels) / 1e6, rel=0.05
    )
    assert released.printed == ours.printed
    assert released.true > 1.2 * released.printed


def test_any_model_can_be_measured() -> None:
    row = measure("shufflenetv2_0.5x", image_size=448, num_classes=10)
    assert row.printed is None
    assert row.true == pytest.approx((40.476 - 1.024) * 4 + 0.010, abs=0.01)
    assert "shufflenetv2_0.5x" in render([row])


def test_command_line() -> None:
    command = [sys.executable, str(ROOT / "scripts/cost.py")]
    run = subprocess.run([*command, "--json", "shufflenetv2_0.25x"], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout)[0]["parameters"] == 1_164_096
    unknown = subprocess.run([*command, "shufflenet"], capture_output=True, text=True)
    assert unknown.returncode != 0
    assert "shufflenet is not a model" in unknown.stderr
