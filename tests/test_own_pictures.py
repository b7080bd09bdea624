"""Own pictures: README's lines, what predictions are, broken pictures, weights for other classes, frozen parts."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import train
from drconv.arguments import prepare
from drconv.commands import predict as command
from drconv.compose import compose_command
from drconv.config import Config
from drconv.engine.batchnorm import reestimate_batchnorm
from drconv.engine.freeze import freeze
from drconv.errors import ConfigError, DataError, WeightsError
from drconv.figures.overlay import Overlays
from drconv.paths import CONFIGS
from drconv.tasks.classification import predict
from drconv.weights import load_start, save_weights
from tests.conftest import ROOT, TINY

Make = Callable[..., Config]
SHORT = [part for part in TINY if not part.startswith(("model=", "data.fraction"))]


def lay_out(root: Path, classes: tuple[str, ...] = ("blue", "green", "red")) -> None:
    for split, count in (("train", 8), ("val", 2)):
        for number, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(0, 90, (40, 44, 3), dtype=np.uint8)
                pixels[:, :, 2 - number] += 150
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")


def test_readme_s_lines_on_own_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    section = (ROOT / "README.md").read_text().partition("## On your own pictures")[2].partition("\n## ")[0]
    lines = [line.split()[1:] for line in section.splitlines() if line.startswith("    ")]
    assert [line[0] for line in lines] == ["train.py", "train.py", "scripts/predict.py"]
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "pictures")
    for line in lines[:2]:
        train.train(compose_command(prepare([part.strip("'") for part in line[1:]] + SHORT, CONFIGS), CONFIGS))
    printed = capsys.readouterr().out
    assert re.search(
        r"weights: .*: \d+ tensors loaded; not loaded: fc.weight \(\(10, \d+\) in the file, \(3, \d+\) h", printed
    )
    start, own = (load_file(f"runs/{name}/model.safetensors") for name in ("start", "own"))
    frozen = [name for name in own if name.startswith(("conv1.", "stage2."))]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(start[name], own[name]) for name in frozen)
    assert not all(torch.equal(start[name], own[name]) for name in own if name.startswith("stage3."))
    assert json.loads(Path("runs/own/result.json").read_text())["start"].startswith("weights: runs/start")
    command.main(lines[2][1:])
    rows = list(csv.DictReader(Path("found.csv").read_text().splitlines()))
    assert len(rows) == 6 * 3
    assert {row["class"] for row in rows} == {"blue", "green", "red"}
    assert sum(float(row["probability"]) for row in rows[:3]) == pytest.approx(1, abs=1e-5)
    assert len(list(Path("overlays").glob("*.png"))) == 6


class Brightest(nn.Module):
    """Logits are the means of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.mean((2, 3))


def test_predictions_are_the_softmax_of_what_evaluation_sees(make_config: Make, tmp_path: Path) -> None:
    lay_out(tmp_path / "p")
    config = make_config("data=imagefolder", f"data.root={tmp_path}/p", "data.image_size=32", "data.eval_resize=32")
    (tmp_path / "p" / "val" / "red" / "bad.png").write_bytes(b"none")
    folder, names = predict.pictures_in(tmp_path / "p" / "val")
    seen = []
    found, broken = predict.predict(
        Brightest(), config, ["r", "g", "b"], folder, names, 2, lambda names, pictures, images: seen.append(pictures)
    )
    assert [line.startswith("cannot decode") and "bad.png" in line for line in broken] == [True]
    assert [each.classes[0] for each in found] == ["b", "b", "g", "g", "r", "r"]
    assert all(len(each.classes) == 2 for each in found)
    from drconv.tasks.classification import build_dataset

    picture = torch.as_tensor(build_dataset(config.data, "val")[0, 0]["image"]).double()
    assert torch.equal(seen[0][0].double(), picture)
    mean, std = (torch.tensor(part).double()[:, None, None] for part in (config.data.mean, config.data.std))
    expected = ((picture - mean) / std).mean((1, 2)).softmax(0).max()
    assert found[0].probabilities[0] == pytest.approx(float(expected), abs=1e-5)
    lines = list(predict.as_table(found))
    assert re.fullmatch(r"blue/0.png +b \d+\.\d%  [rg] \d+\.\d%", lines[0])


def test_files_of_predictions(tmp_path: Path) -> None:
    made = [predict.Prediction("a,b.png", ["x", "y"], [0.75, 0.25])]
    predict.write(tmp_path / "a.csv", made)
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == '"a,b.png",1,x,0.750000'
    predict.write(tmp_path / "a.json", made)
    assert json.loads((tmp_path / "a.json").read_text())[0]["classes"][1] == {"class": "y", "probability": 0.25}
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.json"):
        predict.write(tmp_path / "a.txt", made)


def test_broken_pictures_are_named_and_counted(capsys: pytest.CaptureFixture) -> None:
    command.report_broken(["cannot decode a (cut)"], 3)
    assert capsys.readouterr().err == "skipped: cannot decode a (cut)\n1 of 3 pictures were skipped\n"
    with pytest.raises(DataError, match="none of 1 pictures can be used; cannot decode a"):
        command.report_broken(["cannot decode a (cut)"], 1)


def test_overlays_lie_over_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drconv.figures.mask_figure import GAP, LINE, OPACITY, region_colours
    from drconv.nn import DRConv2d

    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    network = nn.Sequential(DRConv2d(3, 4, 1, regions=2)).eval()
    pictures = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    Overlays(network, tmp_path / "o", []).draw(["a/b.jpg"], pictures, pictures.float())
    strip = np.asarray(Image.open(tmp_path / "o" / "a_b.jpg.png")).astype(int)
    top, left = GAP + 2 * LINE, 2 * GAP + 224  # of the mask, beside the picture
    assert (strip[top : top + 224, GAP : GAP + 224] == 100).all()
    colours = [OPACITY * np.array(colour) + (1 - OPACITY) * 100 for colour in region_colours(2)]
    laid = strip[top : top + 224, left : left + 224]
    assert any(np.abs(laid - colour).max() <= 1 for colour in colours)


def test_only_a_classifier_is_left_out(tmp_path: Path) -> None:
    def network(classes: int, width: int = 4) -> nn.Sequential:
        return nn.Sequential(nn.Linear(3, width), nn.Linear(width, classes))

    save_weights(tmp_path / "w", before := network(10), {"output_names": [str(n) for n in range(10)]})
    own = network(3)
    classifier = own[1].weight.clone()
    report = load_start(tmp_path / "w", own, 3)
    assert "not loaded: 1.weight ((10, 4) in the file, (3, 4) here), 1.bias" in str(report)
    assert torch.equal(own[0].weight, before[0].weight)
    assert torch.equal(own[1].weight, classifier)
    assert load_start(tmp_path / "w", network(10), 10).kept == {}
    for other in (network(3, width=5), network(10, width=5)):  # more than the classifier, or the same classes
        with pytest.raises(WeightsError, match="do not fit the network"):
            load_start(tmp_path / "w", other, other[1].out_features)


def test_frozen_parts_stay(make_config: Make) -> None:
    task = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    freeze(task, ["[01].*"])
    before = {name: value.clone() for name, value in task.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in task.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        task.train()
        task(torch.randn(4, 3, 5, 5)).square().sum().backward()
        optimizer.step()
    reestimate_batchnorm(task, [torch.randn(4, 3, 5, 5)] * 2, make_config(), torch.device("cpu"))
    changed = {name for name, value in task.state_dict().items() if not torch.equal(value, before[name])}
    assert {name[0] for name in changed} == {"2", "3"}
    assert "3.running_mean" in changed
    with pytest.raises(ConfigError, match=r"recipe\.freeze: no parameter fits network\.stem"):
        freeze(task, ["network.stem"])
