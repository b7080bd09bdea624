"""Pictures with the regions that a guide chose laid over them, one file a picture."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from drconv.figures.masks import BLACK, GAP, LINE, TEXT_SIZE, WHITE, choose_masks, compute_masks, paint_mask

OPACITY = 0.5
SIDE = 224  # pixels of a cell at least


def captioned(pictures: Tensor, texts: Sequence[str], size: int) -> Image.Image:
    """Pictures, uint8 (B, 3, S, S), side by side as squares of ``size`` pixels, each with a line of text below it."""
    sheet = Image.new("RGB", (len(pictures) * (size + GAP) - GAP, size + LINE), WHITE)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT_SIZE)
    for column, (pixels, text) in enumerate(zip(pictures, texts, strict=True)):
        cell = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.BICUBIC)
        sheet.paste(cell, (column * (size + GAP), 0))
        pen.text((column * (size + GAP), size), text, BLACK, font)
    return sheet


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
            picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
            side = max(SIDE, picture.width)
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
            painted = [paint_mask(mask.chosen[row], mask.regions, side) for mask in masks]
            cells = [picture, *(Image.blend(picture, mask, OPACITY) for mask in painted)]
            strip = Image.new("RGB", (len(cells) * (side + GAP) - GAP, side), WHITE)
            for column, cell in enumerate(cells):
                strip.paste(cell, (column * (side + GAP), 0))
            strip.save(self.folder / f"{name.replace('/', '_')}.png")
            self.count += 1
