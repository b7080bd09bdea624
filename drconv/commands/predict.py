"""What a trained network says about pictures of your own.

Classes: the likeliest ones of each picture, on the screen, and as CSV or JSON; with the regions of DRConv over it.

    drconv predict run=outputs/... images=FOLDER
    drconv predict run=outputs/... images=dog.jpg --out found.csv --masks overlays

Faces: the nearest pictures of a gallery for each probe, as CSV and as a contact sheet, or the embeddings of a folder.

    drconv predict run=outputs/... probe=FOLDER gallery=FOLDER --out matches.csv
    drconv predict run=outputs/... probe=FOLDER --out embeddings.npz

Objects: pictures with boxes, masks and scores, and results.json in the official format, in a folder.

    drconv predict run=outputs/... images=FOLDER --out found
    drconv predict run=outputs/... images=FOLDER --out found --masks regions    # and what the guides choose

The data of the training need not be there. A picture that does not decode is named, left out and counted. Overrides
stand beside run= too: data.faces.window=[133,114] where the pictures are not cut like those of training.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from drconv.commands.networks import create_model
from drconv.compose import config_of_run
from drconv.config import Config
from drconv.data.decode import read_picture
from drconv.engine.run_folder import RunFolder
from drconv.errors import ConfigError, DataError, RunFolderError
from drconv.figures.guide_overlays import draw_guides
from drconv.figures.overlay import Overlays
from drconv.files import check_writable, replacing
from drconv.messages import exit_with
from drconv.tasks.classification import predict as classes
from drconv.tasks.identification.embedder import (
    MOST_ROWS,
    Embedder,
    contact_sheet,
    nearest,
    pictures_below,
    write_matches,
)
from drconv.tasks.identification.pictures import SIZE
from drconv.tasks.identification.rank import Floats, normalise
from drconv.weights import load_weights, output_names


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
    if not any(setting.startswith("data.root=") for setting in settings):
        settings = [*settings, "data.root=."]  # that of the training may be on another machine
    config = config_of_run(settings)
    if config is None:
        raise ConfigError("give run=<folder> of a finished run")
    tasks = {"classification": predict_classes, "identification": predict_faces, "detection": predict_objects}
    if config.task.name not in tasks:
        raise ConfigError(f"runs of task.name={config.task.name} cannot predict here; only {', '.join(tasks)} can")
    if options.out is None and config.task.name != "classification":
        raise ConfigError(f"runs of task.name={config.task.name} need --out")
    tasks[config.task.name](config, folders, options)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="KEY=VALUE", help="run=, probe=, gallery=, images=, overrides")
    parser.add_argument("--count", type=int, default=5, help="classes of a picture, or gallery pictures of a probe")
    parser.add_argument(
        "--out",
        type=Path,
        help="classes: .csv or .json; faces: .csv with a gallery (and a .png beside it), else .npz; objects: a folder",
    )
    parser.add_argument("--score", type=float, default=0.5, help="lowest score of an object that is drawn")
    parser.add_argument("--masks", type=Path, metavar="FOLDER", help="classes, objects: the regions over pictures")
    parser.add_argument("--guides", nargs="+", default=[], help="patterns of guides; default: one a resolution")
    return parser.parse_args(arguments)


def split_settings(settings: list[str]) -> tuple[dict[str, Path], list[str]]:
    """The folders that ``probe=``, ``gallery=`` and ``images=`` name, and the other settings."""
    folders = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key in ("probe", "gallery", "images"):
            folders[key] = Path(value).expanduser()
    return folders, [setting for setting in settings if setting.partition("=")[0] not in folders]


def weights_of(config: Config) -> Path:
    """The weights that a finished run's record counts, or those that ``weights=`` names.

    Raises:
        RunFolderError: the run is not finished.
    """
    folder = RunFolder(Path(str(config.run)))
    if config.weights:
        return Path(config.weights)
    if not folder.result.exists():
        raise RunFolderError(f"run={config.run} is not finished: no result.json; the training command continues it")
    return folder.weights(folder.read_result()["weights"])


def report_broken(broken: Sequence[str], total: int) -> None:
    """Names the pictures that were left out.

    Raises:
        DataError: all of them.
    """
    if broken and len(broken) == total:
        raise DataError(f"none of {total} pictures can be used; {broken[0]}")
    for line in broken:
        print(f"skipped: {line}", file=sys.stderr)
    if broken:
        print(f"{len(broken)} of {total} pictures were skipped", file=sys.stderr)


def predict_classes(config: Config, folders: dict[str, Path], options: argparse.Namespace) -> None:
    """The likeliest classes of pictures, and overlays of the regions."""
    if "images" not in folders:
        raise ConfigError("give images=<picture, or folder of pictures>")
    if options.out is not None:
        classes.check_ending(options.out)
    folder, names = classes.pictures_in(folders["images"])
    weights = weights_of(config)
    known = output_names(weights) or [str(index) for index in range(config.data.num_classes or 0)]
    if not known:
        raise ConfigError(f"{weights} does not say its classes; give their number as data.num_classes=")
    network = create_model(config.model, len(known), config.data.image_size)
    load_weights(weights, network)
    network.to("cuda" if torch.cuda.is_available() and config.runtime.device != "cpu" else "cpu")
    overlays = Overlays(network, options.masks, options.guides) if options.masks else None
    if overlays is None:
        found, broken = classes.predict(network, config, known, folder, names, options.count)
    else:
        found, broken = classes.predict(network, config, known, folder, names, options.count, overlays.draw)
    report_broken(broken, len(names))
    for line in classes.as_table(found):
        print(line)
    if options.out is not None:
        classes.write(options.out, found)
        print(f"{options.out}: {len(found)} pictures")
    if overlays is not None:
        print(f"{options.masks}: {overlays.count} pictures of the guides {', '.join(overlays.guides)}")


def load_embedder(config: Config) -> Embedder:
    """The network of a finished run."""
    weights = weights_of(config)
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
    if options.count < 1:
        raise ConfigError(f"--count={options.count} must be 1 or more")
    sheet = options.out.with_suffix(".png")
    listed = {name: pictures_below(folder) for name, folder in folders.items() if name != "images"}
    inputs = {(folders[name] / entry).resolve() for name, entries in listed.items() for entry in entries}
    if has_gallery and sheet.resolve() in inputs:
        raise ConfigError(f"the contact sheet {sheet} would take the place of a picture; choose another --out")
    check_writable(options.out.parent)
    embedder = load_embedder(config)

    def embedded(name: str) -> tuple[list[str], Floats]:
        known, rows, broken = embedder.decodable(folders[name], listed[name])
        report_broken(broken, len(listed[name]))
        return known, normalise(np.concatenate(rows), str(folders[name]))

    probes, features = embedded("probe")
    if not has_gallery:
        with replacing(options.out) as temporary, open(temporary, "wb") as file:
            np.savez(file, names=np.array(probes), embeddings=features)
        print(f"{options.out}: {len(probes)} embeddings of {features.shape[1]} numbers")
        return
    gallery, others = embedded("gallery")
    order, scores = nearest(features, others, options.count)
    write_matches(options.out, probes, gallery, order, scores)
    shown = [folders["probe"] / name for name in probes], [folders["gallery"] / name for name in gallery]
    with replacing(sheet) as temporary:
        contact_sheet(*shown, order, scores).save(temporary, "PNG")
    print(f"{options.out}, {sheet}: {len(probes)} probes, {len(gallery)} gallery pictures")
    if len(probes) > MOST_ROWS:
        print(f"{sheet} shows the first {MOST_ROWS} probes")


def load_detector(config: Config) -> tuple[nn.Module, list[str]]:
    """The network of a finished run, with the names of its classes; the data need not be there."""
    weights = weights_of(config)
    names = RunFolder(Path(str(config.run))).read_result()["data"]["val"]["categories"]
    network = create_model(config.model, len(names), None)
    network.register_buffer("category_ids", torch.zeros(len(names), dtype=torch.int64))
    load_weights(weights, network)
    return network, names


def predict_objects(config: Config, folders: dict[str, Path], options: argparse.Namespace) -> None:
    """Pictures with what was found in them, and the results."""
    from drconv.tasks.detection.predict import as_input, pictures_in, predict

    if "images" not in folders:
        raise ConfigError("give images=<picture, or folder of pictures>")
    network, names = load_detector(config)
    images = pictures_in(folders["images"])
    written, broken = predict(network, config, names, images, options.out, options.score)
    report_broken(broken, len(images))
    if options.masks is not None:
        options.masks.mkdir(parents=True, exist_ok=True)
        backbone = network.get_submodule("backbone")
        for path in (image for image in images if options.out / f"{image.stem}.png" in written):
            picture = read_picture(path, max_pixels=config.data.max_pixels, exif=config.data.coco.exif)
            figure = draw_guides(backbone, as_input(network, config, picture), picture, options.guides)
            figure.save(options.masks / f"{path.stem}.png")
    print(f"{options.out}: {len(written)} pictures, results.json")
