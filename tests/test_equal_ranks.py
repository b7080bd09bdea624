"""Two ranks against one: the same weights, momentum, sharded rows and gathers; checkpoints go from one to the other."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import ranks

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two ranks computed, in one start of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(ranks.train(1, stop=ranks.STEPS // 2), folder / "halfway.pt")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.ranks", str(folder)]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    return torch.load(folder / "result.pt", weights_only=True)


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return ranks.train(1)


def assert_same_state(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Weights, whole rows and momentum within 1e-6."""
    assert found["step"] == expected["step"]
    assert found["task"].keys() == expected["task"].keys()
    moments = [state["optimizer"]["state"] for state in (found, expected)]
    pairs = [(found["task"][name], tensor) for name, tensor in expected["task"].items()]
    pairs += [(moments[0][place]["momentum_buffer"], moments[1][place]["momentum_buffer"]) for place in moments[1]]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["whole", "accumulated", "resumed"])
def test_two_ranks_train_like_one(two: dict[str, Any], one: dict[str, Any], kind: str) -> None:
    assert one["task"]["rows"].shape == (ranks.ROWS, 3)
    assert_same_state(two[kind], one)


def test_clipping_sees_the_rows_of_all_ranks(two: dict[str, Any]) -> None:
    clipped = ranks.train(1, clip_norm=0.05)
    assert_same_state(two["clipped"], clipped)
    assert not torch.allclose(clipped["task"]["rows"], ranks.train(1)["task"]["rows"], atol=1e-3)


def test_one_rank_continues_what_two_began(two: dict[str, Any], one: dict[str, Any]) -> None:
    assert_same_state(ranks.train(1, start=two["halfway"]), one)


def test_gathers_take_what_differs_from_rank_to_rank(two: dict[str, Any]) -> None:
    first, second = two["gathered"]["tensors"]
    assert (first.flatten().tolist(), second.flatten().tolist()) == ([0.0], [0.0, 1.0, 2.0, 3.0])
    assert two["gathered"]["objects"] == [{"rank": 0, "text": ""}, {"rank": 1, "text": "x"}]
