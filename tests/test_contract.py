"""What a task from outside may get wrong: one line that names it, before a step, a log or a record is spoiled."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from drconv.data import to_device
from drconv.engine.contract import (
    check_evaluation_sets,
    check_fingerprint,
    check_metrics,
    check_outputs,
    check_same_names,
    check_samples,
    check_watch,
    check_watched,
)
from drconv.engine.step import StepLog
from drconv.errors import TaskError
from drconv.interfaces import Facts, Outputs

CPU = torch.device("cpu")


def loss(value: float = 1.0) -> Tensor:
    return torch.tensor(value, requires_grad=True)


@pytest.mark.parametrize(
    ("outputs", "finding"),
    [
        (loss(), r"forward\(\) of the task gave a tensor \(\) of float32"),
        ({"loss": loss()}, r"gave a dict, and has to give drconv\.interfaces\.Outputs"),
        (Outputs({}), "gave no loss"),
        (Outputs([loss()]), "hold a list, and need a dictionary"),  # type: ignore[arg-type]
        (Outputs({"a": 0.5}), "loss 'a' of the task is 0.5"),  # type: ignore[dict-item]
        (Outputs({"a": loss().reshape(1)}), r"loss 'a' of the task is a tensor \(1,\) of float32"),
        (Outputs({"a": torch.tensor(1.0)}), "depends on no trained parameter"),
        (Outputs({"a": loss()}, {"b": torch.ones(2)}), r"scalar 'b' of the task is a tensor \(2,\)"),
        (Outputs({"a": loss()}, {"b": "good"}), "scalar 'b' of the task is 'good'"),  # type: ignore[dict-item]
        (Outputs({"a": loss()}, counts={"n": torch.tensor(0.5)}), "count 'n' .* has to be a whole number"),
        (Outputs({"a": loss()}, counts={"n": 0.5}), "count 'n' of the task is 0.5"),  # type: ignore[dict-item]
        (Outputs({"a": loss()}, {"step": 1.0}), "calls a value 'step'"),
        (Outputs({"a": loss()}, {"n": 1.0}, {"n": 1}), "calls a value 'n'"),
        (Outputs({"a": loss(), "loss": loss()}), "calls a value 'loss'"),
    ],
)
def test_outputs_that_are_none(outputs: Any, finding: str) -> None:
    with pytest.raises(TaskError, match=finding):
        check_outputs(outputs)


def test_numbers_of_any_kind_are_logged_as_they_are() -> None:
    """300 in a type that ends at 255, True twice, and a half-precision mean whose sum would run over."""
    log = StepLog()
    for _ in range(2):
        counts = {"small": torch.tensor(150, dtype=torch.uint8), "seen": torch.tensor(True), "plain": 2}
        scalars = {"half": torch.tensor(60000.0, dtype=torch.float16), "plain_mean": 0.25, "whole": torch.tensor(3)}
        log.add(check_outputs(Outputs({"loss": loss(2.0)}, scalars, counts)), num_parts=1)
    assert {name: int(value) for name, value in log.counts.items()} == {"small": 300, "seen": 2, "plain": 4}
    found = {name: float(value) for name, value in log.means.items()}
    assert found == {"loss": 4.0, "half": 120000.0, "plain_mean": 0.5, "whole": 6.0}


def test_a_mean_needs_every_batch() -> None:
    log = StepLog()
    log.add(Outputs({"a": loss()}, {"seen": 8.0}), num_parts=2)
    with pytest.raises(TaskError, match="gives seen for some batches only"):
        log.add(Outputs({"a": loss()}), num_parts=2)
    check_same_names(["a", "b"], ["b", "a"])


def test_metrics_become_plain_numbers() -> None:
    computed = {"a": torch.tensor(0.5), "b": np.float32(0.25), "c": True, "d": 7, "e": 1e-3}
    found = check_metrics(computed, "val")
    assert found == {"a": 0.5, "b": 0.25, "c": 1, "d": 7, "e": 1e-3}
    assert [type(value) for value in found.values()] == [float, float, int, int, float]


@pytest.mark.parametrize(
    ("computed", "finding"),
    [
        (None, r"compute\(\) of the metric of val gave None"),
        ({"a": "good"}, "the metric val/a is 'good'"),
        ({"a": {"b": 1.0}}, "the metric val/a is a dict"),
        ({"a": torch.ones(2)}, r"the metric val/a is a tensor \(2,\)"),
        ({"a": 10**400}, "the metric val/a is 1000"),
        ({"a": 1j}, "the metric val/a is"),
        ({"step": 3}, "calls a number 'step'"),
        ({1: 3}, "calls a number 1"),
    ],
)
def test_metrics_that_are_none(computed: Any, finding: str) -> None:
    with pytest.raises(TaskError, match=finding):
        check_metrics(computed, "val")


@pytest.mark.parametrize("sets", [{}, None, [[1]], {"train": [1]}, {"a/b": [1]}, {"val_ema": [1]}, {"": [1]}, {3: [1]}])
def test_evaluation_sets_that_the_record_cannot_name(sets: Any) -> None:
    with pytest.raises(TaskError, match="evaluation"):
        check_evaluation_sets(sets)


def test_data_sets_without_samples() -> None:
    with pytest.raises(TaskError, match="the data set val has no sample"):
        check_evaluation_sets({"val": []})
    with pytest.raises(TaskError, match="the data set train has no sample"):
        check_samples([], "train")  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [None, {"n": np.int64(3)}, {"share": float("nan")}, {"t": torch.ones(1)}])
def test_fingerprints_that_no_file_gives_back(found: Any) -> None:
    with pytest.raises(TaskError, match=r"fingerprint\(\) of val"):
        check_fingerprint(found, "val")


@pytest.mark.parametrize("facts", [(0, None), (1.0, None), (True, None), (3, 32), (3, (32,)), (3, (0, 32))])
def test_facts_that_no_network_has(facts: tuple[Any, Any]) -> None:
    with pytest.raises(TaskError, match="of the data's facts has to be"):
        Facts(*facts)


def test_named_tuples_are_moved_too() -> None:
    pair = namedtuple("pair", "first second")
    batch = {"pairs": [pair(torch.ones(1), "text")], "other": SimpleNamespace(a=1)}
    moved = to_device(batch, CPU)
    assert moved["pairs"] == [pair(torch.ones(1), "text")]
    assert type(moved["pairs"][0]) is pair


def test_a_watch_of_nothing_is_none() -> None:
    with check_watch(None) as watched:
        assert check_watched(watched) == {}


def test_a_watch_of_another_kind() -> None:
    with pytest.raises(TaskError, match=r"watch\(\) of the task gave a dict, and has to give a context manager"):
        check_watch({})
    for yielded, finding in ((None, "yields is None"), ({1: 2}, "yields is a dict"), ({"loss": 1.0}, "value 'loss'")):
        with pytest.raises(TaskError, match=finding):
            check_watched(yielded)
    assert check_watched({"regions": {}, "own": 1.0}) == {"regions": {}, "own": 1.0}
