"""What a trained network says about pictures of your own.

Faces: the nearest pictures of a gallery for each probe, as CSV and as a contact sheet, or the embeddings of a folder.

    drconv predict run=outputs/... probe=FOLDER gallery=FOLDER --out matches.csv
    drconv predict run=outputs/... probe=FOLDER --out embeddings.npz

Objects: pictures with boxes, masks and scores, and results.json in the official format, in a folder.

    drconv predict run=outputs/... images=FOLDER --out found
    drconv predict run=outputs/... images=FOLDER --out found --guides     # and the regions that the guides choose

Overrides stand beside run= too: data.faces.window=[133,114] where the pictures are not cut like those of training.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import nn

from drconv.commands.networks import create_model
from drconv.compose import config_of_run
from drconv.config import Config
from drconv.data.decode import read_picture
from drconv.engine.run_folder import RunFolder
from drconv.errors import ConfigError
from drconv.figures.guide_overlays import draw_guides
from drconv.messages import exit_with
from drconv.tasks.identification.embedder import (
    Embedder,
    contact_sheet,
    nearest,
    pictures_below,
    write_matches,
)
from drconv.tasks.identification.pictures import SIZE
from drconv.tasks.identification.rank import Floats, normalise
from drconv.weights import load_weights


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = parse_options(arguments)
    try:
        predict(options)
    except Exception as error:
        exit_with(error)


def predict(options: argparse.Namespace) -> None:
    """Calls what the run's task has."""
    folders, settings = split_settings(options.settings)
    config = config_of_run(settings)
    if config is None:
        raise ConfigError("give run=<folder> of a finished run")
    tasks = {"identification": predict_faces, "detection": predict_objects}
    if config.task.name not in tasks:
        raise ConfigError(f"runs of task.name={config.task.name} cannot predict here; only {', '.join(tasks)} can")
    tasks[config.task.name](config, folders, options)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="run=, probe=, gallery=, images=, overrides")
    parser.add_argument("--count", type=int, default=5, help="gallery pictures for each probe")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help=".csv with a gallery (and a .png beside it), else .npz; a folder for images=",
    )
    parser.add_argument("--score", type=float, default=0.5, help="lowest score of an object that is drawn")
    parser.add_argument("--guides", action="store_true", help="draw what the guides of a detector choose, too")
    return parser.parse_args(arguments)


def split_settings(settings: list[str]) -> tuple[dict[str, Path], list[str]]:
    """The folders that ``probe=``, ``gallery=`` and ``images=`` name, and the other settings."""
    folders = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in ("probe", "gallery", "images"):
            folders[key] = Path(value).expanduser()
    return folders, [setting for setting in settings if setting.partition("=")[0] not in folders]


def load_embedder(config: Config) -> Embedder:
    """The network of a finished run."""
    assert config.run is not None
    folder = RunFolder(Path(config.run))
    weights = Path(config.weights) if config.weights else folder.weights(folder.read_result()["weights"])
    network = create_model(config.model, None, SIZE)
    load_weights(weights, network)
    return Embedder(network, config, weights)


def predict_faces(config: Config, folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Nearest pictures, or embeddings."""
    if "probe" not in folders:
        raise ConfigError("give probe=<folder of pictures>, and gallery=<folder> to search in")
    has_gallery = "gallery" in folders
    wanted = ".csv" if has_gallery else ".npz"
    if options.out.suffix != wanted:
        raise ConfigError(f"--out={options.out} must end in {wanted} {'with' if has_gallery else 'without'} gallery=")
    embedder = load_embedder(config)

    def embedded(folder: Path) -> tuple[list[str], Floats]:
        names = pictures_below(folder)
        parts = [names[i : i + 64] for i in range(0, len(names), 64)]
        rows = [embedder.pictures([folder / name for name in part]).cpu().numpy() for part in parts]
        return names, normalise(np.concatenate(rows), str(folder))

    probes, features = embedded(folders["probe"])
    if not has_gallery:
        np.savez(options.out, names=np.array(probes), embeddings=features)
        print(f"{options.out}: {len(probes)} embeddings of {features.shape[1]} numbers")
        return
    gallery, others = embedded(folders["gallery"])
    order, scores = nearest(features, others, options.count)
    write_matches(options.out, probes, gallery, order, scores)
    sheet = options.out.with_suffix(".png")
    shown = [folders["probe"] / name for name in probes], [folders["gallery"] / name for name in gallery]
    contact_sheet(*shown, order, scores).save(sheet)
    print(f"{options.out}, {sheet}: {len(probes)} probes, {len(gallery)} gallery pictures")


def load_detector(config: Config) -> tuple[nn.Module, list[str]]:
    """The network of a finished run, with the names of its classes; the data need not be there."""
    folder = RunFolder(Path(str(config.run)))
    result = folder.read_result()
    names = result["data"]["val"]["categories"]
    network = create_model(config.model, len(names), None)
    network.register_buffer("category_ids", torch.zeros(len(names), dtype=torch.int64))
    load_weights(Path(config.weights) if config.weights else folder.weights(result["weights"]), network)
    return network, names


def predict_objects(config: Config, folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Pictures with what was found in them, and the results."""
    from drconv.tasks.detection.predict import as_input, pictures_in, predict

    if "images" not in folders:
        raise ConfigError("give images=<picture, or folder of pictures>")
    network, names = load_detector(config)
    pictures = pictures_in(folders["images"])
    written = predict(network, config, names, pictures, options.out, options.score)
    for path in pictures if options.guides else ():
        picture = read_picture(path, max_pixels=config.data.max_pixels, exif=config.data.coco.exif)
        figure = draw_guides(network.get_submodule("backbone"), as_input(network, config, picture), picture)
        figure.save(options.out / f"{path.stem}.guides.png")
    print(f"{options.out}: {len(written)} pictures, results.json")
