"""scripts/benchmark.py: its sides are what they are called, and its arithmetic; nothing is held to a time."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from drconv.config import ModelConfig
from drconv.nn import CondConv2d
from models import create_model
from scripts import benchmark
from scripts.benchmarking import layers as benchmark_layers
from scripts.benchmarking import memory as benchmark_memory
from scripts.benchmarking.shares import floor_of_step, shares_of_step
from scripts.benchmarking.sides import RoutedTimmCondConv, use_timm_condconv
from scripts.roofline import Device, Layer, Place


@pytest.mark.parametrize("batch", [1, 3])
def test_condconv_side_is_timms_layer_with_our_routing(batch: int) -> None:
    torch.manual_seed(0)
    network = create_model(ModelConfig("mobilenetv2", 0.25, conv="condconv"), 10, 64).eval()
    x = torch.randn(batch, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    expected = network(x)
    network = use_timm_condconv(network)
    kinds = [type(module) for module in network.modules()]
    assert CondConv2d not in kinds
    assert kinds.count(RoutedTimmCondConv) > 30
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_rows_hold_ratios_and_targets() -> None:
    times = {"plain": [1.0, 2.0, 4.0], "grouped": [1.2, 2.2, 4.0], "dense": [6.0, 6.6, 8.0], "fused": [1.0, 2.0, 4.0]}
    rows = {row.side: row for row in benchmark.rows_of("inference", "shufflenetv2_0.5x", 1, times)}
    assert rows["grouped"].ratio == pytest.approx(1.1)
    assert rows["grouped"].target == 1.2
    assert rows["dense / grouped"].median == pytest.approx(3.0)
    assert "at least 3.00" in benchmark.markdown(rows["dense / grouped"], has_roofline=True)
    assert rows["fused"].target == 1.0
    others = benchmark.rows_of("inference", "mobilenetv2", 1, times)
    assert next(row for row in others if row.side == "fused").target is None


def test_rows_that_are_there_are_written_when_a_run_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.json"

    def measure(_: Namespace) -> Iterator[benchmark.Row]:
        yield from benchmark.rows_of("inference", "mobilenetv2", 1, {"plain": [1.0]})
        raise KeyboardInterrupt

    threads = torch.get_num_threads()
    arguments = benchmark.parse(["--device", "cpu", "--json", str(path), "--threads", str(threads)])
    monkeypatch.setattr(benchmark, "parse", lambda: arguments)
    monkeypatch.setattr(benchmark, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    assert [row["side"] for row in json.loads(path.read_text())["rows"]] == ["plain"]


def test_memory_is_refused_where_it_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark_memory, "PROC", tmp_path)
    with pytest.raises(SystemExit):
        benchmark.parse(["--device", "cpu", "--parts", "memory"])
    assert "leave memory out of --parts" in capsys.readouterr().err


@pytest.mark.skipif(benchmark_memory.missing_for("cpu") is not None, reason="needs /proc")
def test_memory_of_a_step_is_not_hidden_by_a_large_parent() -> None:
    ballast = torch.ones(150_000_000)
    assert 30 < benchmark_memory.peak_memory("shufflenetv2_0.5x", "plain", "cpu", 1, batch=4) < 400
    del ballast


def test_layers_are_those_of_the_networks() -> None:
    places = benchmark_layers.distinct_places(["shufflenetv2_0.5x", "mobilefacenet"])
    assert Place(Layer(24, 24, 8, 28 * 28), (28, 28)) in places
    assert Place(Layer(64, 128, 8, 56 * 48), (56, 48)) in places
    assert len(places) == len(set(places)) > 12
    place = next(iter(places))
    for train in (False, True):
        runs = benchmark_layers.layer_runs(place, benchmark_layers.SIDES, 1, "cpu", train)
        assert list(runs) == list(benchmark_layers.SIDES)
        for run in runs.values():
            run()


def test_floor_of_a_layer_counts_the_side_that_is_measured() -> None:
    """By hand on a device where bytes cost a second each, and one where operations do."""
    layer = Layer(channels=4, out_channels=6, regions=3, positions=10)
    memory, arithmetic = Device("slow memory", 1.0, 1e30, 1e30), Device("slow units", 1e30, 3.0, 3.0)
    x, y, filters = 4 * 20 * 4, 4 * 20 * 6, 4 * 4 * 6
    product = 2 * 20 * 4 * 6
    of = benchmark_layers.floor_of_side
    assert of(layer, "plain", 2, False, memory) == pytest.approx(x + y + filters)
    assert of(layer, "dense", 2, False, memory) == pytest.approx(x + 6 * filters + 7 * y)
    assert of(layer, "dense", 2, True, arithmetic) == pytest.approx(9 * product)
    assert of(layer, "grouped", 2, True, arithmetic) == pytest.approx((1 + 2 + 3) * product)
    assert of(layer, "experts", 2, False, memory) > of(layer, "grouped", 2, False, memory)


def test_share_of_the_replaced_convolutions() -> None:
    (share,) = shares_of_step("shufflenetv2_0.5x", "cpu", batch=2, steps=1)
    assert 0 < share < 1
    assert floor_of_step(0.17) == pytest.approx(1 + 0.17 * 7 / 3)
    assert floor_of_step(1.0, regions=1) == 1
