"""runtime.dry_run: what it times, what it adds up, what it prints."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import train
from drconv.config import Config
from drconv.engine import dry_run

Make = Callable[..., Config]


def test_prints_speed_time_and_cost_and_saves_nothing(make_config: Make, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_config("runtime.dry_run=true", "recipe.steps=100000", "recipe.eval_batch_size=50")
    seconds = train.train(config)
    printed = capsys.readouterr().out
    hours = float(re.search(r"projected for 100000 steps and 1 evaluations .*, ([\d.]+) device-hours", printed)[1])
    assert hours == pytest.approx(seconds / 3600, abs=0.006)
    assert "images/s in training" in printed
    assert not Path(config.run).exists()


def test_adds_up_all_that_a_run_does(make_config: Make) -> None:
    plain = make_config()
    assert dry_run.projected_seconds(plain, 100, 2.0, 7 * 3.0) == 100 * 2 + 7 * 3
    averaged = make_config("recipe.ema_decay=0.9", "recipe.bn_reestimation_steps=10")
    assert dry_run.projected_seconds(averaged, 100, 2.0, 7 * 3.0) == (100 + 2 * 10) * 2 + 2 * 7 * 3


@pytest.mark.parametrize(("samples", "evaluated", "loaded"), [(8000, 4, 13), (600, 2, 3), (100, 1, 1)])
def test_evaluation_is_timed_after_the_loader_has_started(
    samples: int, evaluated: int, loaded: int, make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes prepare eight batches while the first one is computed: these are not timed."""
    config = make_config("runtime.workers=4", "recipe.eval_batch_size=200")
    timed: list[list[int]] = []
    taken: list[int] = []

    def batches() -> Iterator[int]:
        for batch in range(-(-samples // 200)):
            taken.append(batch)
            yield batch

    monkeypatch.setattr(dry_run, "evaluate", lambda task, name, dataset, given, *rest: timed.append(list(given)))
    data = SimpleNamespace(name="val", dataset=range(samples), batches=batches())
    dry_run._timed_evaluation(config, SimpleNamespace(task=None), data, torch.device("cpu"))
    assert timed[0] == [0]
    assert len(timed[1]) == evaluated
    assert len(taken) == loaded
