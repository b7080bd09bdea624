"""Embeddings of pictures by a trained network, and the nearest of a gallery: what a user does with a run."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor, nn

from drconv.config import Config
from drconv.data import prepare
from drconv.data.decode import read_picture
from drconv.data.index import list_pictures
from drconv.errors import DataError
from drconv.files import file_hash, replace_file
from drconv.tasks.identification.extraction import fingerprint_of
from drconv.tasks.identification.pictures import fit_face
from drconv.tasks.identification.rank import Floats

_CELL = (112, 96)
_BLOCK = 256  # probes whose scores are held at once
MOST_ROWS = 200  # of a contact sheet: more than can be looked at


class Embedder:
    """A network in evaluation mode with the preprocessing of its run; a row does not depend on the others.

    Args:
        network: gives embeddings (B, D).
        config: of the run: pixels, window, flip test.
        weights: the file they came from, for the fingerprint.
    """

    def __init__(self, network: nn.Module, config: Config, weights: Path) -> None:
        self.network = network.eval()
        self.config = config
        self.weights = weights
        self.device = next(network.parameters()).device

    @torch.inference_mode()
    def pictures(self, paths: list[Path]) -> Tensor:
        """Embeddings (n, D) of picture files; with ``data.faces.flip_test`` the sum with the mirror's."""
        window = self.config.data.faces.window
        faces = torch.stack([fit_face(_read(path), window, str(path)) for path in paths])
        images = prepare({"image": faces}, self.config.data, self.device, self.config.runtime.channels_last)["image"]
        plain = self.network(images).float()
        return plain + self.network(images.flip(-1)).float() if self.config.data.faces.flip_test else plain

    def decodable(self, folder: Path, names: list[str]) -> tuple[list[str], list[Floats], list[str]]:
        """Embeds the pictures of a folder that decode, in parts of 64.

        Returns:
            Their names, their embeddings part by part, and a line for each picture that was left out.
        """
        known: list[str] = []
        rows: list[Floats] = []
        broken: list[str] = []

        def embed(part: list[str]) -> None:
            try:
                rows.append(self.pictures([folder / name for name in part]).cpu().numpy())
                known.extend(part)
            except DataError as error:
                if len(part) == 1:
                    broken.append(str(error).partition("; repair")[0])
                else:
                    for name in part:
                        embed([name])

        for start in range(0, len(names), 64):
            embed(names[start : start + 64])
        return known, rows, broken

    def fingerprint(self, folder: Path) -> str:
        """Of weights, network, preprocessing and the folder of the pictures, for ``extraction.extract``."""
        data = self.config.data
        treatment = [data.mean, data.std, data.channel_order, data.faces.window, data.faces.flip_test]
        return fingerprint_of(file_hash(self.weights), self.config.model, treatment, os.path.realpath(folder))


def stamps(folder: Path, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Name, size and time of the last change of pictures: what tells that another one has taken a name."""
    states = (os.stat(folder / name) for name in names)
    return [(name, state.st_size, state.st_mtime_ns) for name, state in zip(names, states, strict=True)]


def _read(path: Path) -> Tensor:
    """A picture; faces are never passed over by ``data.broken``, which the reader's message would advise."""
    try:
        return read_picture(path)
    except DataError as error:
        raise DataError(str(error).partition(", or set data.broken")[0]) from error


def pictures_below(folder: Path) -> list[str]:
    """Names of all pictures in a folder, sorted.

    Raises:
        DataError: there is none.
    """
    names = sorted(list_pictures(folder)) if folder.is_dir() else []
    if not names:
        raise DataError(f"{folder} has no pictures; give a folder with .jpg or .png files")
    return names


def nearest(probes: Floats, gallery: Floats, count: int) -> tuple[NDArray[np.int64], Floats]:
    """For unit rows the ``count`` nearest gallery rows of each probe and their cosines, both (P, count)."""
    orders, values = [], []
    for start in range(0, len(probes), _BLOCK):
        scores = probes[start : start + _BLOCK] @ gallery.T
        order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
        orders.append(order)
        values.append(np.take_along_axis(scores, order, 1))
    return np.concatenate(orders), np.concatenate(values)


def write_matches(path: Path, probes: list[str], gallery: list[str], order: NDArray[np.int64], scores: Floats) -> None:
    """A CSV with a row for each probe and place: probe, rank, gallery picture, similarity."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["probe", "rank", "gallery", "similarity"])
    for probe, row, values in zip(probes, order, scores, strict=True):
        for rank, (column, value) in enumerate(zip(row, values, strict=True), start=1):
            writer.writerow([probe, rank, gallery[column], f"{value:.4f}"])
    replace_file(path, text.getvalue().encode(errors="surrogateescape"))


def contact_sheet(probes: list[Path], gallery: list[Path], order: NDArray[np.int64], scores: Floats) -> Image.Image:
    """A probe a row, of the first ``MOST_ROWS``, and the gallery pictures nearest to it with their similarity."""
    rows, columns = _CELL
    probes, order, scores = probes[:MOST_ROWS], order[:MOST_ROWS], scores[:MOST_ROWS]
    sheet = Image.new("RGB", ((order.shape[1] + 1) * columns + 8, len(probes) * (rows + 14)), "white")
    draw = ImageDraw.Draw(sheet)
    for line, (probe, chosen, values) in enumerate(zip(probes, order, scores, strict=True)):
        top = line * (rows + 14)
        sheet.paste(_thumbnail(probe), (0, top))
        for place, (column, value) in enumerate(zip(chosen, values, strict=True)):
            left = (place + 1) * columns + 8
            sheet.paste(_thumbnail(gallery[column]), (left, top))
            draw.text((left + 2, top + rows), f"{value:.3f}", fill="black")
    return sheet


def _thumbnail(path: Path) -> Image.Image:
    picture = Image.fromarray(read_picture(path).permute(1, 2, 0).numpy())
    picture.thumbnail((_CELL[1], _CELL[0]))
    return picture
