"""Masks: colours against the guide's arg max on a tiny network, and the command on a trained run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from drconv.commands import masks as command
from drconv.commands.run_pictures import choose_pictures, masks_of, read_pictures
from drconv.config import Config
from drconv.errors import ConfigError, RunFolderError
from drconv.figures.canvas import as_image
from drconv.figures.mask_figure import GAP, colours_across, draw_figure, paint_mask, region_colours
from drconv.figures.masks import Mask, choose_masks, compute_masks
from drconv.nn import DRConv2d, Guide
from models import create_model, load_model
from tests.project import finish_untrained


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
        assert first.chosen[b][y, x] == max(range(3), key=lambda region: logits[b, region, y, x].item())
    assert [chosen.shape for chosen in second.chosen] == [(3, 3)] * 2
    shares = [(torch.stack(first.chosen) == region).float().mean().item() for region in range(3)]
    assert first.usage() == pytest.approx(shares)


def test_painted_colours_are_the_regions() -> None:
    chosen = torch.tensor([[0, 1], [3, 2]])
    colours = region_colours(4)
    pixels = np.asarray(paint_mask(chosen, colours))
    assert [[tuple(pixel) for pixel in row] for row in pixels.tolist()] == [[colours[i] for i in row] for row in chosen]
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    laid = np.asarray(paint_mask(chosen, colours, grey)).astype(int)
    assert laid[0, 0] == pytest.approx([round(0.45 * 100 + 0.55 * c) for c in colours[0]], abs=1)


def test_a_colour_holds_across_a_row() -> None:
    """The same halves under other numbers have the same colours; a guide with another M begins anew."""
    halves = torch.tensor([[0, 0, 2, 2]])
    renamed = torch.tensor([[2, 2, 1, 1], [2, 2, 1, 1]])
    masks = [Mask("a", 3, [halves]), Mask("b", 3, [renamed]), Mask("c", 3, [renamed]), Mask("d", 2, [halves // 2])]
    first, second, third, other = colours_across(masks)
    assert first == region_colours(3)
    assert (second[2], second[1]) == (first[0], first[2])
    assert sorted(second) == sorted(first)
    assert third == second
    assert other == region_colours(2)


@pytest.mark.parametrize("regions", [1, 2, 8, 16, 32])
def test_colours_differ(regions: int) -> None:
    assert len(set(region_colours(regions))) == regions


def test_figure_shows_pictures_and_masks_where_they_belong() -> None:
    pictures = [torch.full((3, 16, 16), 200, dtype=torch.uint8)] * 2
    masks = [
        Mask("a.guide", 2, [torch.tensor([[0]]), torch.tensor([[1]])]),
        Mask("b.guide", 4, [torch.tensor([[3]])] * 2),
    ]
    figure = np.asarray(as_image(*draw_figure(pictures, masks, size=64)))
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
    masks = [Mask(name, 8, [torch.zeros(size, size, dtype=torch.int64)]) for name, size in sizes.items()]
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
    network = create_model(config.model, 10, config.data.image_size)
    assert any(isinstance(module, Guide) for module in network.modules())
    return finish_untrained(config, network, list("0123456789"))


def choose_masks_of(run: Path) -> list[Mask]:
    network: Any = load_model(run)
    return choose_masks(compute_masks(network, torch.zeros(1, 3, 32, 32)), [])


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
    draw(f"run={finished_run}", "--count", "2", "--overlay", "--out", "data.svg")
    svg = ElementTree.parse("data.svg")
    pictures = [e.get("href", "") for e in svg.iter("{http://www.w3.org/2000/svg}image")]
    assert len(pictures) == 2 * (1 + len(choose_masks_of(finished_run)))
    assert all(href.startswith("data:image/png;base64,") for href in pictures)
    with pytest.raises(ConfigError, match=r"must end in \.png or \.svg"):
        draw(f"run={finished_run}", "--out", "data.gif")
    (finished_run / "result.json").unlink()
    with pytest.raises(RunFolderError, match="is not finished"):
        draw(f"run={finished_run}", "--out", "none.png")
    with pytest.raises(ConfigError, match="give run=<folder>"):
        draw("seed=1", "--out", "none.png")


def test_masks_of_faces(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    config = make_config("model=drconv_mobilefacenet", "data.fraction=1")
    pictures = choose_pictures(config, 2)
    assert [tuple(picture.shape) for picture in pictures] == [(3, 112, 96)] * 2
    masks = masks_of(create_model(config.model, None, None), pictures, config)
    assert len(masks) == 15
    assert [tuple(chosen.shape) for chosen in masks[0].chosen] == [(56, 48)] * 2


@pytest.mark.parametrize("model", ["drconv_mask_rcnn_r50_4r", "drconv_detnas_300m_fpn_8r"])
def test_masks_of_detectors_show_the_picture_and_not_its_padding(
    model: str, make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture of 40 x 100 pixels is seen at 70 x 175, padded to 96 x 192."""
    monkeypatch.setenv("DRCONV_KERNEL", "torch")
    sizes = ["data.coco.sizes=[70]", "data.coco.max_size=175"]
    config = make_config(f"model={model}", "model.width=0.25", "data.fraction=1", *sizes)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    pictures = read_pictures([tmp_path / "a.png"], config)
    assert tuple(pictures[0].shape) == (3, 70, 175)
    masks = masks_of(create_model(config.model, 3, None), pictures, config)
    for mask in masks:  # of the 6 x 12 positions at stride 16, 5 x 11 lie on the picture
        rows, columns = mask.chosen[0].shape
        assert (rows, columns) in {(35, 88), (18, 44), (9, 22), (5, 11), (3, 6)}
    names = [mask.name for mask in masks]
    assert any("fpn.inner_blocks" in name for name in names) == ("rcnn" in model)
