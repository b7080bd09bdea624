"""Pictures with the regions that a guide chose laid over them, one file a picture."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor, nn

from drconv.figures.canvas import Item, Pixels, Text, as_image
from drconv.figures.mask_figure import GAP, LINE, draw_figure
from drconv.figures.masks import Mask, choose_masks, compute_masks

SIDE = 224  # pixels of a cell at least


def captioned(pictures: Tensor, texts: Sequence[str], size: int) -> Image.Image:
    """Pictures, uint8 (B, 3, S, S), side by side as squares of ``size`` pixels, each with a line of text below it."""
    items: list[Item] = []
    for column, (pixels, text) in enumerate(zip(pictures, texts, strict=True)):
        left = column * (size + GAP)
        items.append(Pixels((left, 0, size, size), Image.fromarray(pixels.permute(1, 2, 0).numpy())))
        items.append(Text(left, size, text))
    return as_image((len(pictures) * (size + GAP) - GAP, size + LINE), items)


class Overlays:
    """Writes for every picture a PNG: the picture, then the regions of each chosen guide over it.

    Args:
        network: in evaluation, with guides.
        folder: made if it is missing.
        guides: patterns of their names; without, the middle one at each resolution.
    """

    def __init__(self, network: nn.Module, folder: Path, guides: list[str]) -> None:
        self.network, self.folder, self.patterns = network, folder, guides
        self.guides: list[str] = []
        self.count = 0

    def draw(self, names: list[str], pictures: Tensor, images: Tensor) -> None:
        """Writes a batch: names of the files, uint8 (B, 3, S, S), and the network's input of it.

        Raises:
            ConfigError: the network has no guide, or none that fits.
        """
        masks = choose_masks(compute_masks(self.network, images), self.patterns)
        self.guides = [mask.name for mask in masks]
        self.folder.mkdir(parents=True, exist_ok=True)
        for row, (name, pixels) in enumerate(zip(names, pictures, strict=True)):
            own = [Mask(mask.name, mask.regions, [mask.chosen[row]]) for mask in masks]
            figure = as_image(*draw_figure([pixels], own, max(SIDE, *pixels.shape[1:]), is_overlay=True))
            figure.save(self.folder / f"{name.replace('/', '_')}.png")
            self.count += 1
