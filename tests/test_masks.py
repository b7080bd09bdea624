"""Masks: colours against the guide's arg max on a tiny network, and the command on a trained run."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from drconv.commands import masks as command
from drconv.config import Config
from drconv.engine.run_folder import RunFolder
from drconv.errors import ConfigError, RunFolderError
from drconv.figures.masks import GAP, Mask, choose_masks, compute_masks, draw_figure, paint_mask, region_colours
from drconv.nn import DRConv2d, Guide
from drconv.weights import save_weights
from models import create_model


class TinyNetwork(nn.Module):
    """Two DRConvs with own guides at two resolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = DRConv2d(3, 4, 1, regions=3)
        self.second = DRConv2d(4, 4, 3, stride=2, padding=1, regions=5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_masks_are_the_arg_max_of_each_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    torch.manual_seed(0)
    network, images = TinyNetwork(), torch.randn(2, 3, 6, 6)
    network.train()
    first, second = compute_masks(network, images)
    assert network.training
    assert (first.name, first.regions, second.name, second.regions) == ("first.guide", 3, "second.guide", 5)
    logits = torch.einsum("mc,bchw->bmhw", network.first.guide.weight[:, :, 0, 0], images)
    for b, y, x in np.ndindex(2, 6, 6):
        assert first.chosen[b, y, x] == max(range(3), key=lambda region: logits[b, region, y, x].item())
    assert second.chosen.shape == (2, 3, 3)
    shares = [(first.chosen == region).float().mean().item() for region in range(3)]
    assert first.usage() == pytest.approx(shares)


def test_painted_colours_are_the_regions() -> None:
    chosen = torch.tensor([[0, 1], [3, 2]])
    pixels = np.asarray(paint_mask(chosen, 4, 8))
    colours = region_colours(4)
    for y, x in np.ndindex(8, 8):
        assert tuple(pixels[y, x]) == colours[chosen[y // 4, x // 4]]


@pytest.mark.parametrize("regions", [1, 2, 8, 16, 32])
def test_colours_differ(regions: int) -> None:
    assert len(set(region_colours(regions))) == regions


def test_figure_shows_pictures_and_masks_where_they_belong() -> None:
    pictures = torch.full((2, 3, 16, 16), 200, dtype=torch.uint8)
    masks = [Mask("a.guide", 2, torch.tensor([[[0]], [[1]]])), Mask("b.guide", 4, torch.full((2, 1, 1), 3))]
    figure = np.asarray(draw_figure(pictures, masks, size=64))
    step = 64 + GAP
    assert figure.shape[1] == GAP + 3 * step
    left, top = GAP + 32, figure.shape[0]
    found = [tuple(figure[y, left + step]) for y in range(top)]
    first, second = region_colours(2)
    assert found.index(second) - found.index(first) == step
    assert region_colours(4)[3] in {tuple(figure[y, left + 2 * step]) for y in range(top)}
    assert (200, 200, 200) in {tuple(figure[y, left]) for y in range(top)}


def test_choice_of_guides() -> None:
    sizes = {"s2.0.guide": 4, "s2.1.guide": 4, "s3.0.guide": 4, "s3.1.guide": 2}
    masks = [Mask(name, 8, torch.zeros(1, size, size, dtype=torch.int64)) for name, size in sizes.items()]
    assert [mask.name for mask in choose_masks(masks, [])] == ["s2.1.guide", "s3.1.guide"]
    assert [mask.name for mask in choose_masks(masks, ["s2.*"])] == ["s2.0.guide", "s2.1.guide"]
    with pytest.raises(ConfigError, match=r"no guide fits s9; the guides are s2\.0\.guide"):
        choose_masks(masks, ["s2.*", "s9"])
    with pytest.raises(ConfigError, match="no guide"):
        compute_masks(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4))


@pytest.fixture
def finished_run(make_config: Callable[..., Config]) -> Path:
    """A run folder with the weights of an untrained network."""
    config = make_config()
    folder = RunFolder(Path(str(config.run)))
    folder.open(config)
    network = create_model(config.model, 10, config.data.image_size)
    assert any(isinstance(module, Guide) for module in network.modules())
    save_weights(folder.weights("last"), network, {})
    folder.result.write_text(json.dumps({"weights": "last"}))
    folder.close()
    return folder.path


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``draw("run=...", "--out", "a.png")``: the command within this process and in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRCONV_KERNEL", "torch")

    def run(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["masks.py", *arguments])
        command.draw(command.parse_options())

    return run


def test_command_draws_validation_pictures_and_files(finished_run: Path, draw: Callable[..., None]) -> None:
    draw(f"run={finished_run}", "--count", "3", "--out", "data.png")
    assert Image.open("data.png").height > 3 * 160
    Image.new("RGB", (40, 30), (9, 90, 200)).save("blue.png")
    draw(f"run={finished_run}", "--images", "blue.png", "--out", "file.png")
    assert (9, 90, 200) in {colour for _, colour in Image.open("file.png").getcolors(100_000)}
    (finished_run / "result.json").unlink()
    with pytest.raises(RunFolderError, match="is not finished"):
        draw(f"run={finished_run}", "--out", "none.png")
    with pytest.raises(ConfigError, match="give run=<folder>"):
        draw("seed=1", "--out", "none.png")
