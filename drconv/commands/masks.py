"""Draws which region every position of a picture belongs to, for a trained network.

    drconv masks run=outputs/small/imagenette/drconv_shufflenetv2_0.5x/seed0 --out masks.png
    drconv masks run=... --images dog.jpg cat.jpg --guides 'stage3.*' --out masks.png

Without --images the pictures are taken evenly from the run's validation set; data.root= says where that lies now.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from drconv.commands.networks import create_model
from drconv.compose import config_of_run
from drconv.config import Config
from drconv.data import prepare
from drconv.data.decode import read_picture
from drconv.engine.run_folder import RunFolder
from drconv.errors import ConfigError, RunFolderError
from drconv.figures.masks import choose_masks, compute_masks, draw_figure
from drconv.messages import exit_with
from drconv.tasks.classification import build_dataset
from drconv.tasks.classification.transforms import EvalTransform
from drconv.weights import load_weights


def main() -> None:
    """The command line."""
    options = parse_options()
    try:
        draw(options)
    except Exception as error:
        exit_with(error)


def draw(options: argparse.Namespace) -> None:
    """Writes the figure."""
    config = config_of_run(options.settings)
    if config is None:
        raise ConfigError("give run=<folder> of a finished run; its own model is drawn")
    network = load_network(config)
    pictures = read_pictures(options.images, config) if options.images else choose_pictures(config, options.count)
    batch = prepare({"image": pictures}, config.data, torch.device("cpu"), config.runtime.channels_last)
    masks = choose_masks(compute_masks(network, batch["image"]), options.guides)
    draw_figure(pictures, masks, options.cell).save(options.out)
    print(f"{options.out}: {len(pictures)} pictures, guides {', '.join(mask.name for mask in masks)}")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="run=<folder>, and overrides like data.root=")
    parser.add_argument("--images", nargs="+", type=Path, default=[], help="picture files")
    parser.add_argument("--count", type=int, default=6, help="pictures from the validation set")
    parser.add_argument(
        "--guides", nargs="+", default=[], help="patterns of guides; default: the middle one at each resolution"
    )
    parser.add_argument("--cell", type=int, default=160, help="pixels of a side of a picture in the figure")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    return parser.parse_args()


def load_network(config: Config) -> torch.nn.Module:
    """The network of a run with the weights that its record counts.

    Raises:
        RunFolderError: the run is not finished.
    """
    assert config.run is not None  # config_of_run() fills it
    folder = RunFolder(Path(config.run))
    if not folder.result.exists():
        raise RunFolderError(f"run={config.run} is not finished: no result.json; the training command continues it")
    num_classes = config.data.num_classes or len(build_dataset(config.data, "val", config.seed).classes)
    network = create_model(config.model, num_classes, config.data.image_size)
    load_weights(folder.weights(json.loads(folder.result.read_text())["weights"]), network)
    return network


def read_pictures(paths: list[Path], config: Config) -> Tensor:
    """Files as the network sees them in evaluation: uint8 (B, 3, S, S)."""
    transform = EvalTransform(config.data)
    return torch.stack([transform.cut(read_picture(path)) for path in paths])


def choose_pictures(config: Config, count: int) -> Tensor:
    """Pictures spread evenly over the validation set, which is sorted by class: uint8 (B, 3, S, S)."""
    dataset = build_dataset(config.data, "val", config.seed)
    if not 0 < count <= len(dataset):
        raise ConfigError(f"--count={count} must lie between 1 and {len(dataset)}")
    indices = [(2 * number + 1) * len(dataset) // (2 * count) for number in range(count)]
    return torch.stack([torch.as_tensor(dataset[index, 0]["image"]) for index in indices])
