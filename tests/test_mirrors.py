"""Mirrors of the record: TensorBoard holds the numbers of metrics.jsonl, pictures are made for whoever shows them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import train
from drconv.commands.examples import example_pictures
from drconv.config import Config
from drconv.engine.training_log import TrainingLog
from drconv.errors import InterruptedRunError
from drconv.figures.mask_figure import GAP
from drconv.figures.overlay import captioned
from drconv.tasks.classification import build_dataset

Make = Callable[..., Config]


def test_tensorboard_has_the_log_and_pictures(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config("recipe.steps=4", "logging.tensorboard=true")
    folder = Path(str(config.run))
    log = TrainingLog.record
    stop = [True]

    def record(self: TrainingLog, split: str, step: int, entry: dict) -> None:
        log(self, split, step, entry)
        if stop.pop():
            stop.append(False)
            raise KeyboardInterrupt  # after the first entry, before its state is saved
        stop.append(False)

    monkeypatch.setattr(TrainingLog, "record", record)
    with pytest.raises(InterruptedRunError):
        train.train(config)
    train.train(config)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        for key in ("loss", "top1"):
            found = [each.value for each in events.Scalars(f"{entry['split']}/{key}") if each.step == entry["step"]]
            assert found == [pytest.approx(entry[key], rel=1e-6)]
    assert any(tag.startswith("train/regions.") and tag.endswith("/0") for tag in events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"val/predictions", "val/masks"}


def test_without_tensorboard_the_run_goes_on(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train.train(make_config("recipe.steps=3", "logging.tensorboard=true"))
    assert capsys.readouterr().out.count("warning: TensorBoard is off for this run") == 1


class Label(nn.Module):
    """Always the third class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight + nn.functional.one_hot(torch.tensor([2] * len(x)), 10).float()


def test_predictions_are_captioned_with_class_and_label(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("model=shufflenetv2_0.25x")
    dataset = build_dataset(config.data, "val")
    texts: list[str] = []
    monkeypatch.setattr("drconv.commands.examples.captioned", lambda pictures, given, size: texts.extend(given))
    assert example_pictures(config, Label(), dataset).keys() == {"val/predictions"}
    labels = [dataset[(2 * number + 1) * len(dataset) // 12, 0]["label"] for number in range(6)]
    assert texts == [f"2 ({label})" for label in labels]


def test_captions_lie_below_their_pictures() -> None:
    pictures = torch.full((2, 3, 4, 4), 90, dtype=torch.uint8)
    sheet = np.asarray(captioned(pictures, ["", "x"], 20))
    assert sheet.shape[1] == 40 + GAP
    assert (sheet[:20, :20] == 90).all()
    assert (sheet[:20, -20:] == 90).all()
    assert (sheet[20:, :20] == 255).all()
    assert (sheet[20:, -20:] != 255).any()
