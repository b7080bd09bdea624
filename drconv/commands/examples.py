"""Pictures of a run for those who follow it elsewhere: some to evaluate on, what was said of them, the regions."""

import torch
from PIL.Image import Image
from torch import nn

from drconv.config import Config
from drconv.data import prepare
from drconv.figures.canvas import as_image
from drconv.figures.mask_figure import draw_figure
from drconv.figures.masks import choose_masks, compute_masks
from drconv.figures.overlay import captioned
from drconv.interfaces import Dataset

COUNT = 6
CELL = 160


@torch.inference_mode()
def example_pictures(config: Config, network: nn.Module, dataset: Dataset) -> dict[str, Image]:
    """``val/predictions`` (with the label in brackets), and ``val/masks`` for a network with guides.

    Empty for tasks other than classification.
    """
    if config.task.name != "classification":
        return {}
    count = min(COUNT, len(dataset))
    samples = [dataset[(2 * number + 1) * len(dataset) // (2 * count), 0] for number in range(count)]
    pictures = torch.stack([torch.as_tensor(sample["image"]) for sample in samples])
    device = next(network.parameters()).device
    images = prepare({"image": pictures}, config.data, device, config.runtime.channels_last)["image"]
    was_training = network.training
    likeliest = network.eval()(images).argmax(1).tolist()
    network.train(was_training)
    names = dataset.facts.output_names or [str(index) for index in range(dataset.facts.num_outputs or 0)]
    texts = [f"{names[found]} ({names[sample['label']]})" for found, sample in zip(likeliest, samples, strict=True)]
    shown = {"val/predictions": captioned(pictures, texts, CELL)}
    if config.model.conv == "drconv":
        masks = choose_masks(compute_masks(network, images), [])
        shown["val/masks"] = as_image(*draw_figure(list(pictures), masks, CELL))
    return shown
