"""A picture made of pixels, rectangles and text, written as PNG or SVG from the same list of items."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

from drconv.errors import ConfigError

Colour = tuple[int, int, int]
TEXT_SIZE = 13
WHITE, BLACK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class Pixels:
    """An image, enlarged to the box without smoothing where ``is_blocky``."""

    box: tuple[int, int, int, int]  # left, top, width, height
    image: Image.Image
    is_blocky: bool = False


@dataclass(frozen=True)
class Rectangle:
    box: tuple[int, int, int, int]
    colour: Colour


@dataclass(frozen=True)
class Text:
    left: int
    top: int
    text: str


Item = Pixels | Rectangle | Text


def write_figure(path: Path, size: tuple[int, int], items: list[Item]) -> None:
    """Writes the items on white; the ending decides.

    Args:
        path: ``.png`` or ``.svg``.
        size: width and height in pixels.
        items: painted in their order.

    Raises:
        ConfigError: another ending.
    """
    if path.suffix == ".svg":
        path.write_text(as_svg(size, items))
    elif path.suffix == ".png":
        as_image(size, items).save(path)
    else:
        raise ConfigError(f"--out={path} must end in .png or .svg")


def as_image(size: tuple[int, int], items: list[Item]) -> Image.Image:
    """The items as pixels."""
    figure = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(figure)
    font = ImageFont.load_default(TEXT_SIZE)
    for item in items:
        if isinstance(item, Text):
            draw.text((item.left, item.top), item.text, BLACK, font)
            continue
        left, top, width, height = item.box
        if isinstance(item, Rectangle):
            draw.rectangle((left, top, left + width, top + height), item.colour)
        else:
            kind = Image.Resampling.NEAREST if item.is_blocky else Image.Resampling.BICUBIC
            figure.paste(item.image.resize((width, height), kind), (left, top))
    return figure


def as_svg(size: tuple[int, int], items: list[Item]) -> str:
    """The items as SVG text with every image in it."""
    width, height = size
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="{TEXT_SIZE}">',
        f'<rect class="ground" width="{width}" height="{height}" fill="white"/>',
    ]
    for item in items:
        if isinstance(item, Text):
            parts.append(f'<text x="{item.left}" y="{item.top + TEXT_SIZE}">{escape(item.text)}</text>')
            continue
        box = 'x="{}" y="{}" width="{}" height="{}"'.format(*item.box)
        if isinstance(item, Rectangle):
            parts.append('<rect {} fill="#{:02x}{:02x}{:02x}"/>'.format(box, *item.colour))
        else:
            style = ' style="image-rendering:pixelated"' if item.is_blocky else ""
            parts.append(f'<image {box}{style} preserveAspectRatio="none" href="{data_uri(item.image)}"/>')
    return "\n".join([*parts, "</svg>", ""])


def data_uri(image: Image.Image) -> str:
    """The image as a PNG within a text."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
