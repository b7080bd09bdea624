"""Pictures of one's own through a trained classifier: the likeliest classes of each, as text, CSV or JSON."""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from drconv.config import Config
from drconv.data import prepare
from drconv.data.decode import read_picture
from drconv.data.index import list_pictures
from drconv.errors import ConfigError, DataError, printable
from drconv.files import replace_file
from drconv.tasks.classification.transforms import EvalTransform

BATCH = 64
ENDINGS = (".csv", ".json")
Seen = Callable[[list[str], Tensor, Tensor], None]


@dataclass(frozen=True)
class Prediction:
    """A picture's likeliest classes, best first, with their probabilities (softmax)."""

    picture: str
    classes: list[str]
    probabilities: list[float]


def pictures_in(place: Path) -> tuple[Path, list[str]]:
    """A folder and the names of the pictures in it, of folders inside too; for a file that one alone.

    Raises:
        DataError: there is none.
    """
    if place.is_file():
        return place.parent, [place.name]
    names = sorted(list_pictures(place)) if place.is_dir() else []
    if not names:
        raise DataError(f"images={place} has no pictures; give a picture, or a folder with .jpg or .png files")
    return place, names


@torch.inference_mode()
def predict(
    network: nn.Module,
    config: Config,
    classes: Sequence[str],
    folder: Path,
    names: Sequence[str],
    top: int = 5,
    seen: Seen = lambda names, pictures, images: None,
) -> tuple[list[Prediction], list[str]]:
    """Predicts pictures as evaluation sees them.

    Args:
        network: a classifier with its weights, in any mode, on any device.
        config: of its run.
        classes: names of its outputs.
        folder: that the names are relative to.
        names: of the pictures.
        top: classes of each picture.
        seen: called for each batch with the names, the pictures uint8 (B, 3, S, S) and the network's input.

    Returns:
        The predictions, and of each picture that does not decode a line that says so.
    """
    network.eval()
    device = next(network.parameters()).device
    found: list[Prediction] = []
    broken: list[str] = []
    for known, pictures in _batches(config, folder, names, broken):
        images = prepare({"image": pictures}, config.data, device, config.runtime.channels_last)["image"]
        seen(known, pictures, images)
        probabilities = network(images).float().softmax(1)
        values, indices = probabilities.topk(min(top, len(classes)))
        for name, row, at in zip(known, values.tolist(), indices.tolist(), strict=True):
            found.append(Prediction(name, [classes[index] for index in at], row))
    return found, broken


def _batches(
    config: Config, folder: Path, names: Sequence[str], broken: list[str]
) -> Iterator[tuple[list[str], Tensor]]:
    """Names and pictures uint8 (B, 3, S, S); those that do not decode are left out and added to ``broken``."""
    transform = EvalTransform(config.data)
    for start in range(0, len(names), BATCH):
        known, pictures = [], []
        for name in names[start : start + BATCH]:
            try:
                picture = read_picture(folder / name, max_pixels=config.data.max_pixels)
            except DataError as error:
                broken.append(str(error).partition("; repair")[0])
                continue
            known.append(name)
            pictures.append(transform.cut(picture))
        if known:
            yield known, torch.stack(pictures)


def as_table(predictions: Sequence[Prediction]) -> Iterator[str]:
    """Lines for the terminal: the picture, then its classes with percentages."""
    cells = [
        [printable(each.picture), *(f"{printable(name)} {share:.1%}" for name, share in _pairs(each))]
        for each in predictions
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def write(path: Path, predictions: Sequence[Prediction]) -> None:
    """CSV (picture, rank, class, probability: a line for each class) or JSON (a list), as the ending says.

    Raises:
        ConfigError: another ending.
    """
    check_ending(path)
    if path.suffix == ".json":
        content = [
            {"picture": each.picture, "classes": [{"class": n, "probability": p} for n, p in _pairs(each)]}
            for each in predictions
        ]
        replace_file(path, json.dumps(content, indent=1) + "\n")
        return
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["picture", "rank", "class", "probability"])
    for each in predictions:
        rows.writerows([each.picture, rank, n, f"{p:.6f}"] for rank, (n, p) in enumerate(_pairs(each), start=1))
    replace_file(path, text.getvalue())


def check_ending(path: Path) -> None:
    """Raises a ConfigError for a file that is neither CSV nor JSON."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"--out={path} must end in {' or '.join(ENDINGS)}")


def _pairs(prediction: Prediction) -> Iterator[tuple[str, float]]:
    yield from zip(prediction.classes, prediction.probabilities, strict=True)
