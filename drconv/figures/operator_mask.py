"""The figure of the operator: a picture, the regions an untrained guide cuts it into, and the filter of each region."""

import torch
from torch import Tensor

from drconv.nn import Guide

SIDE = 28  # positions of the map
CELL = 8  # pixels of the figure per position
COLOURS = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#000000")


def draw_scene() -> Tensor:
    """A sun over a hill, (1, 3, SIDE, SIDE) in 0..1."""
    y, x = torch.meshgrid(*[torch.linspace(0, 1, SIDE)] * 2, indexing="ij")
    scene = torch.stack([0.35 + 0.4 * y, 0.6 + 0.2 * y, 0.95 - 0.1 * y])
    hill = y > 0.62 - 0.25 * torch.sin(3.0 * x + 0.3)
    sun = (x - 0.75).square() + (y - 0.22).square() < 0.02
    scene = torch.where(hill, torch.stack([0.2 + 0.2 * x, 0.5 - 0.3 * (y - 0.6), 0.25 * torch.ones_like(x)]), scene)
    return torch.where(sun, torch.tensor([0.98, 0.85, 0.3])[:, None, None], scene)[None]


def cells(colours: list[list[str]], left: int) -> list[str]:
    """Squares of a map, runs of one colour as one rectangle."""
    parts = []
    for row, line in enumerate(colours):
        start = 0
        for column in range(1, SIDE + 1):
            if column == SIDE or line[column] != line[start]:
                box = f'x="{left + start * CELL}" y="{row * CELL}" width="{(column - start) * CELL}" height="{CELL}"'
                parts.append(f'<rect {box} fill="{line[start]}"/>')
                start = column
    return parts


def draw_figure() -> str:
    """The SVG."""
    torch.manual_seed(5)
    scene = draw_scene()
    mask = Guide(3, len(COLOURS), kernel_size=3, padding=1)(scene - scene.mean((2, 3), keepdim=True)).argmax(1)[0]
    levels = (scene[0] * 255).round().int().permute(1, 2, 0).tolist()
    picture = [["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in row] for row in levels]
    regions = [[COLOURS[region] for region in row] for row in mask.tolist()]
    width, gap = SIDE * CELL, 24
    parts = cells(picture, 0) + cells(regions, width + gap)
    for place, region in enumerate(mask.unique().tolist()):
        left, top = 2 * (width + gap), 20 + 24 * place
        parts.append(f'<rect x="{left}" y="{top}" width="16" height="16" fill="{COLOURS[region]}"/>')
        label = f"W<tspan font-size='9' dy='3'>{region}</tspan>"
        parts.append(f'<text x="{left + 24}" y="{top + 13}" font-family="sans-serif" font-size="14">{label}</text>')
    size = f'width="{2 * (width + gap) + 64}" height="{width}"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', *parts, "</svg>", ""])
