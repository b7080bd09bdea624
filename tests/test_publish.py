"""Publishing: the folder opens again with the same logits, says what it is, and nothing that is there is touched."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from drconv.commands.publish import publish
from drconv.config import Config
from drconv.engine.run_folder import RunFolder
from drconv.errors import ConfigError, RunFolderError, WeightsError
from drconv.files import file_hash
from drconv.results.make_record import circumstances, run_record, write_json
from drconv.weights import save_weights
from models import create_model, load_model

NAMES = [f"class {i}" for i in range(10)]
SECRET = "/home/somebody/pictures"
RUNS = {  # overrides, classes, pictures, headline
    "classification": ([], 10, [2, 3, 32, 32], "val/top1"),
    "identification": (["model=drconv_mobilefacenet"], None, [2, 3, 112, 96], "gallery/rank1"),
    "detection": (["model=drconv_mask_rcnn_r50_4r", "model.width=0.25"], 10, [1, 3, 64, 64], "val/box_ap"),
}


@pytest.fixture
def finish(make_config: Callable[..., Config]) -> Callable[[str], tuple[Path, nn.Module]]:
    """A finished run of a task with drawn weights, as training leaves it, and its network."""

    def make(task: str) -> tuple[Path, nn.Module]:
        overrides, classes, _, metric = RUNS[task]
        config = make_config(*overrides, "data.fraction=1", "runtime.kernel=torch", run=task)
        config.data.root = SECRET
        folder = RunFolder(Path(str(config.run)))
        folder.open(config)
        network = create_model(config.model, classes, 32 if task == "classification" else None)
        if task == "detection":
            network.register_buffer("category_ids", torch.arange(1, 11))
        path = folder.weights("last")
        save_weights(path, network, {"output_names": NAMES if classes else []})
        details: dict[str, Any] = {"steps": 6, "wall_time_s": 9.0, "train": {}, "data": {}, "cost": None}
        made = circumstances(torch.device("cpu"), 1)
        record = run_record(config, {"last": {metric: 61.25}}, {"last": path}, details, made)
        write_json(folder.result, record)
        folder.close()
        return folder.path, network.eval()

    return make


@pytest.mark.parametrize("task", sorted(RUNS))
@torch.no_grad()
def test_a_published_run_computes_the_same(
    task: str, finish: Callable[[str], tuple[Path, nn.Module]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    run, network = finish(task)
    publish(run, tmp_path / "given" / "away")
    assert sorted(path.name for path in (tmp_path / "given/away").iterdir()) == [
        *("README.md", "config.yaml", "model.safetensors", "result.json")
    ]
    (run / "config.yaml").unlink()  # nothing of the run is needed any more
    opened: Any = load_model(tmp_path / "given" / "away")
    x = torch.randn(RUNS[task][2])
    theirs, ours = opened(x), network(x)
    pairs = [(theirs, ours)] if task != "detection" else [(theirs[0][key], ours[0][key]) for key in ours[0]]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert not opened.training
    assert opened.output_names == ([] if task == "identification" else NAMES)
    assert opened.config.model.conv == "drconv"


def test_card_and_record_say_what_it_is_without_places(
    finish: Callable[[str], tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    run, _ = finish("classification")
    publish(run, tmp_path / "away")
    card = (tmp_path / "away/README.md").read_text()
    for part in (
        "**val/top1** | **61.25**",
        "class 3",
        'load_model("away")',
        "D11: What keeps guide",
        "[78.9, 78.9, 78.9]",
    ):
        assert part in card
    for path in (tmp_path / "away").glob("*.[jmy]*"):
        assert SECRET not in path.read_text(errors="ignore")
        assert str(tmp_path) not in path.read_text(errors="ignore")
    assert json.loads((tmp_path / "away/result.json").read_text())["metrics"] == {"val/top1": 61.25}


def test_nothing_is_overwritten_and_nothing_broken_is_published(
    finish: Callable[[str], tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    run, network = finish("classification")
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="there already"):
        publish(run, tmp_path / "there")
    assert not list((tmp_path / "there").iterdir())
    before = file_hash(run / "model.safetensors")
    save_weights(run / "model.safetensors", network.half(), {})
    assert file_hash(run / "model.safetensors") != before
    with pytest.raises(WeightsError, match="sha256 differs"):
        publish(run, tmp_path / "new")
    (run / "result.json").unlink()
    with pytest.raises(RunFolderError, match="not finished"):
        publish(run, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".publish-*"))
