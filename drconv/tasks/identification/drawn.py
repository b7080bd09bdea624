"""Drawn faces: identities that never were, with pose, light, expression and occlusion, as a function of two numbers.

For a run that needs no download and for tests. Everything that makes an identity (shape of head, eyes, brows, nose and
mouth, colours, hair, beard, marks) comes from the identity's key alone; everything else from the picture's seed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from drconv.data.hashing import hash_integers, hash_range

ROWS, COLUMNS = 112, 96
_SCALE = 2  # drawn at twice the size, then reduced
_IDENTITY, _PICTURE, _NOISE = 11, 12, 13
Colour = tuple[int, int, int]
Pixels = NDArray[np.uint8]


def uniforms(key: int, count: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) under a key, the same everywhere."""
    return hash_range(key, count) / 2.0**64


@dataclass(frozen=True)
class Traits:
    """What an identity looks like; lengths in pixels of the drawing (224 x 192)."""

    width: float
    height: float
    skin: Colour
    hair: Colour
    hair_length: float
    fringe: float
    eye_distance: float
    eye_height: float
    eye_size: tuple[float, float]
    iris: Colour
    brow: tuple[float, float, float]  # height, slope, thickness
    nose: tuple[float, float]
    mouth: tuple[float, float, float]  # height, width, thickness
    beard: float
    marks: list[tuple[float, float]]


def traits_of(key: int) -> Traits:
    u = uniforms(hash_integers(_IDENTITY, key), 28)
    tone = u[0] ** 0.8
    skin = tuple(int(v) for v in np.array([92, 58, 40]) + tone * np.array([150, 140, 128]) + 14 * (u[1:4] - 0.5))
    dark = u[4] ** 2
    hair = tuple(int(v) for v in np.array([20, 15, 12]) + dark * np.array([200, 165, 90]) + 30 * u[5])
    return Traits(
        width=52 + 20 * u[6],
        height=72 + 20 * u[7],
        skin=skin,  # type: ignore[arg-type]
        hair=hair,  # type: ignore[arg-type]
        hair_length=u[8],
        fringe=u[9],
        eye_distance=20 + 14 * u[10],
        eye_height=-26 + 16 * u[11],
        eye_size=(7 + 6 * u[12], 3.5 + 4 * u[13]),
        iris=tuple(int(40 + 140 * v) for v in u[14:17] * np.array([0.7, 0.9, 1.0])),  # type: ignore[arg-type]
        brow=(11 + 8 * u[17], 10 * (u[18] - 0.5), 2 + 5 * u[19]),
        nose=(16 + 16 * u[20], 6 + 9 * u[21]),
        mouth=(36 + 12 * u[22], 14 + 14 * u[23], 3 + 6 * u[24]),
        beard=max(0.0, u[25] - 0.65) / 0.35,
        marks=[(90 * (v - 0.5), 90 * (w - 0.5)) for v, w in (u[24:26], u[26:28])],
    )


def draw_face(identity: int, seed: int) -> Pixels:
    """A face (112, 96, 3) uint8 RGB; the same numbers give the same bits.

    Args:
        identity: key of the identity.
        seed: of everything that differs between its pictures.
    """
    traits = traits_of(identity)
    key = hash_integers(_PICTURE, identity, seed)
    v = uniforms(key, 40)
    size = (COLUMNS * _SCALE, ROWS * _SCALE)
    canvas = Image.new("RGB", size, tuple(int(40 + 180 * x) for x in v[0:3]))
    draw = ImageDraw.Draw(canvas)
    yaw, pitch = 2 * v[3] - 1, 2 * v[4] - 1
    _draw_head(draw, traits, size, yaw)
    _draw_features(draw, traits, size, yaw, pitch, v[5:12])
    _occlude(draw, size, traits, v[12:18])
    turned = canvas.transform(
        (COLUMNS, ROWS), Image.Transform.AFFINE, _placement(size, v[18:22]), Image.Resampling.BICUBIC
    )
    return _light(np.asarray(turned, np.float64), v[22:34], key)


def _centre(size: tuple[int, int]) -> tuple[float, float]:
    return size[0] / 2, size[1] / 2 + 8


def _ellipse(draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in colour)
    return red, green, blue


def _draw_head(draw: ImageDraw.ImageDraw, t: Traits, size: tuple[int, int], yaw: float) -> None:
    x, y = _centre(size)
    back = x - 6 * yaw
    _ellipse(draw, back, y - 12, t.width + 9, t.height + 6, t.hair)
    if t.hair_length > 0.4:
        low = y + t.height * t.hair_length
        draw.rectangle((back - t.width - 8, y - 10, back + t.width + 8, low), fill=t.hair)
    draw.rectangle((x - 24, y + t.height * 0.6, x + 24, size[1]), fill=_shade(t.skin, 0.8))
    _ellipse(draw, x, y, t.width, t.height, t.skin)
    if t.beard > 0:
        angles = np.radians(np.linspace(60 - 40 * t.beard, 120 + 40 * t.beard, 24))
        outline = np.stack([x + t.width * 0.94 * np.cos(angles), y + t.height * 0.98 * np.sin(angles)], 1)
        draw.polygon([tuple(point) for point in outline.tolist()], fill=_shade(t.hair, 1.1))
    top = y - t.height
    draw.chord((x - t.width, top - 4, x + t.width, top + 2 * t.height * (0.3 + 0.35 * t.fringe)), 180, 360, fill=t.hair)


def _draw_features(
    draw: ImageDraw.ImageDraw, t: Traits, size: tuple[int, int], yaw: float, pitch: float, v: NDArray[np.float64]
) -> None:
    """Eyes, brows, nose, mouth and marks; nearer parts move more when the head turns."""
    x, y = _centre(size)
    x, y = x + 12 * yaw, y + 7 * pitch
    opening = 0.35 + 0.65 * min(1.0, 1.4 * v[0])
    for side in (-1, 1):
        near = 1 - 0.18 * side * yaw
        ex, ey = x + side * t.eye_distance * near, y + t.eye_height
        rx, ry = t.eye_size[0] * near, t.eye_size[1] * opening
        _ellipse(draw, ex, ey, rx, ry, (238, 236, 232))
        _ellipse(draw, ex + 5 * (v[1] - 0.5), ey, min(ry, rx * 0.55), ry, t.iris)
        _ellipse(draw, ex + 5 * (v[1] - 0.5), ey, ry * 0.45, ry * 0.45, (12, 12, 14))
        by, slope = ey - t.brow[0] - 4 * (v[2] - 0.5), t.brow[1] * side
        line = (ex - 11 * near, by - slope / 2, ex + 11 * near, by + slope / 2)
        draw.line(line, fill=_shade(t.hair, 0.75), width=max(1, round(t.brow[2])))
    length, width = t.nose
    tip = (x + 9 * yaw, y + t.eye_height + 10 + length)
    bridge = (x + 2 * yaw, y + t.eye_height + 4)
    draw.polygon([bridge, (tip[0] - width, tip[1]), (tip[0] + width, tip[1])], fill=_shade(t.skin, 0.88))
    _ellipse(draw, tip[0] - width * 0.5, tip[1], 2, 1.5, _shade(t.skin, 0.45))
    _ellipse(draw, tip[0] + width * 0.5, tip[1], 2, 1.5, _shade(t.skin, 0.45))
    mx, my, open_ = x + 3 * yaw, y + t.mouth[0], 9 * max(0.0, v[3] - 0.5)
    lips = (min(255, int(t.skin[0] * 0.85 + 30)), int(t.skin[1] * 0.55), int(t.skin[2] * 0.58))
    smile = 12 * (v[4] - 0.35)
    wide = t.mouth[1] * (0.9 + 0.25 * v[4])
    points = [(mx - wide, my - smile), (mx, my - t.mouth[2]), (mx + wide, my - smile), (mx, my + t.mouth[2] + open_)]
    draw.polygon(points, fill=lips)
    if open_ > 1:
        _ellipse(draw, mx, my + open_ / 3, wide * 0.45, open_ * 0.6, (60, 16, 18))
    for ax, ay in t.marks:
        _ellipse(draw, x + ax * 0.8, y + ay * 0.8, 2.2, 2.2, _shade(t.skin, 0.4))


def _occlude(draw: ImageDraw.ImageDraw, size: tuple[int, int], t: Traits, v: NDArray[np.float64]) -> None:
    """One picture in three has glasses, a scarf or something in front of it."""
    x, y = _centre(size)
    kind, colour = v[0], tuple(int(30 + 190 * c) for c in v[1:4])
    if kind < 0.12:
        for side in (-1, 1):
            ex = x + side * t.eye_distance
            draw.rounded_rectangle((ex - 17, y - 30, ex + 17, y - 6), 8, outline=(25, 25, 30), width=3)
    elif kind < 0.2:
        draw.rectangle((0, y + 34 + 24 * v[4], size[0], size[1]), fill=colour)
    elif kind < 0.33:
        left, top = v[4] * size[0], v[5] * size[1]
        draw.rectangle((left - 26, top - 26, left + 26, top + 26), fill=colour)


def _placement(size: tuple[int, int], v: NDArray[np.float64]) -> tuple[float, ...]:
    """The affine map from output pixels to the drawing: up to 12 degrees, 8 % in scale, 4 pixels."""
    angle, scale = np.deg2rad(24 * (v[0] - 0.5)), _SCALE * (0.92 + 0.16 * v[1])
    a, b = scale * np.cos(angle), scale * np.sin(angle)
    cx, cy = COLUMNS / 2 + 8 * (v[2] - 0.5), ROWS / 2 + 8 * (v[3] - 0.5)
    return a, b, size[0] / 2 - a * cx - b * cy, -b, a, size[1] / 2 + b * cx - a * cy


def _light(pixels: NDArray[np.float64], v: NDArray[np.float64], key: int) -> Pixels:
    """A lamp from one side, its strength and colour, grain."""
    rows, columns = np.mgrid[-1 : 1 : ROWS * 1j, -1 : 1 : COLUMNS * 1j]
    angle = 2 * np.pi * v[0]
    side = 1 + 0.55 * v[1] * (columns * np.cos(angle) + rows * np.sin(angle))
    gain = (0.55 + 0.6 * v[2]) * (1 + 0.16 * (v[3:6] - 0.5))
    grain = (uniforms(hash_integers(_NOISE, key), ROWS * COLUMNS).reshape(ROWS, COLUMNS) - 0.5) * (6 + 26 * v[6])
    lit = pixels * side[:, :, None] * gain + 25 * (v[7] - 0.4) + grain[:, :, None]
    return np.clip(np.rint(lit), 0, 255).astype(np.uint8)
