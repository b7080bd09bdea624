"""The pictures of a run and the masks that its network makes of them, for every task."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drconv.commands.networks import load_model
from drconv.config import Config
from drconv.data import normalise
from drconv.data.decode import read_picture
from drconv.errors import ConfigError
from drconv.figures.guide_overlays import inside_masks
from drconv.figures.masks import Mask, compute_masks, join_masks
from drconv.tasks import find_task
from drconv.weights import load_weights


def load_network(config: Config) -> nn.Module:
    """The network of a finished run, in evaluation mode, with the weights that its record counts, or ``weights=``.

    Raises:
        RunFolderError: the run is not finished.
    """
    network = load_model(str(config.run))
    if config.weights is not None:
        load_weights(Path(config.weights), network)
    return network


def choose_pictures(config: Config, count: int) -> list[Tensor]:
    """Pictures spread evenly over the first evaluation set (sorted by class or identity), as the network sees them.

    Returns:
        Of each uint8 (3, H, W).

    Raises:
        ConfigError: the run has no such set, or fewer pictures.
    """
    sets = find_task(config.task).evaluation_sets(config)
    if not sets:
        raise ConfigError("this run has no evaluation set to take pictures from; give --images")
    dataset = next(iter(sets.values()))
    if not 0 < count <= len(dataset):
        raise ConfigError(f"--count={count} must lie between 1 and {len(dataset)}")
    indices = [(2 * number + 1) * len(dataset) // (2 * count) for number in range(count)]
    return [torch.as_tensor(dataset[index, 0]["image"]) for index in indices]


def read_pictures(paths: list[Path], config: Config) -> list[Tensor]:
    """Files as the network sees them in evaluation, of each uint8 (3, H, W)."""
    return [_fit(path, config) for path in paths]


def _fit(path: Path, config: Config) -> Tensor:
    """A picture cut and resized as the run's evaluation does it."""
    if config.task.name == "identification":
        from drconv.tasks.identification.pictures import fit_face

        return fit_face(read_picture(path), config.data.faces.window, str(path))
    if config.task.name == "detection":
        from drconv.tasks.detection.transforms import Change, change_picture, fit

        coco = config.data.coco
        picture = read_picture(path, max_pixels=config.data.max_pixels, exif=coco.exif)
        return change_picture(picture, Change(fit((picture.shape[1], picture.shape[2]), coco.sizes[-1], coco.max_size)))
    from drconv.tasks.classification.transforms import EvalTransform

    return torch.as_tensor(EvalTransform(config.data).cut(read_picture(path)))


def masks_of(network: nn.Module, pictures: list[Tensor], config: Config) -> list[Mask]:
    """The masks of every guide; each picture goes through the network alone, as in evaluation.

    Raises:
        ConfigError: the network has no guide.
    """
    return join_masks([_masks_of_one(network, picture, config) for picture in pictures])


def _masks_of_one(network: Any, picture: Tensor, config: Config) -> list[Mask]:
    image = normalise(picture[None], config.data, config.runtime.channels_last)
    if config.task.name != "detection":
        return compute_masks(network, image)
    return inside_masks(network.backbone, image)  # the heads have no guides
