"""Line charts as SVG text, several panels with one legend; the standard library only."""

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

# The eight colours of Okabe and Ito, which the colour-blind can tell apart; further lines are dashed.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999933")
DASHES = ("none", "6 3", "2 2")
WIDTH, HEIGHT = 360, 240  # of a panel, axes included
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 30, 34  # room around the plot within a panel
LEGEND_LINE = 18
NUM_TICKS = 5

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve; ``number`` decides its colour and is the same in all panels.

    ``spreads`` draws a bar of plus and minus that much at every point; ``marker`` is None, "full" or "hollow".
    """

    number: int
    points: list[Point]
    marker: str | None = None
    spreads: list[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One plot over the steps, or over what ``x_label`` says; the y axis can be logarithmic, and the x axis too."""

    title: str
    lines: list[Line]
    is_logarithmic: bool = False
    x_label: str = "step"
    x_logarithmic: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the range; powers of ten on a logarithmic axis."""
        if self.is_logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            factors = (1,) if len(powers) > 2 else (1, 2, 5)
            found = [factor * 10.0**power for power in powers for factor in factors]
            return [tick for tick in found if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]
        step = round_step((self.high - self.low) / NUM_TICKS)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def round_step(width: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below the width."""
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def draw_chart(panels: list[Panel], labels: list[str], columns: int = 2) -> str:
    """An SVG of the panels in rows, with a legend of the labels below; line k has label k.

    Raises:
        ValueError: a panel has no points.
    """
    columns = min(columns, len(panels))
    num_rows = -(-len(panels) // columns)
    width, height = columns * WIDTH, num_rows * HEIGHT + LEGEND_LINE * (len(labels) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white" class="ground"/>',
    ]
    for number, panel in enumerate(panels):
        parts += _draw_panel(panel, number % columns * WIDTH, number // columns * HEIGHT)
    for number, label in enumerate(labels):
        y = num_rows * HEIGHT + LEGEND_LINE * (number + 0.8)
        parts.append(f'<path d="M{LEFT} {y:.1f}h28" {_stroke(number)}/>')
        parts.append(f'<text x="{LEFT + 36}" y="{y + 4:.1f}">{escape(label)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _draw_panel(panel: Panel, left: float, top: float) -> list[str]:
    points = [point for line in panel.lines for point in line.points]
    if not points:
        raise ValueError(f"no run has values for the panel {panel.title!r}; leave it out")
    x_axis = _axis([x for x, _ in points], left + LEFT, left + WIDTH - RIGHT)
    if panel.x_logarithmic:  # with a little room at both ends, which whole powers of ten would make large
        low, high = min(x for x, _ in points) / 1.15, max(x for x, _ in points) * 1.15
        x_axis = Axis(low, high, left + LEFT, left + WIDTH - RIGHT, True)
    spreads = [line.spreads or [0.0] * len(line.points) for line in panel.lines]
    reached = [
        y + sign * spread
        for line, own in zip(panel.lines, spreads, strict=True)
        for (_, y), spread in zip(line.points, own, strict=True)
        for sign in (-1, 1)
    ]
    if any(line.marker for line in panel.lines):  # room, so that no point lies on the frame
        room = 0.04 * (max(reached) - min(reached))
        reached += [min(reached) - room, max(reached) + room]
    y_axis = _axis(reached, top + HEIGHT - BOTTOM, top + TOP, panel.is_logarithmic)
    parts = [f'<text x="{left + LEFT}" y="{top + TOP - 10}" font-weight="bold">{escape(panel.title)}</text>']
    for tick in y_axis.ticks():
        y = y_axis.place(tick)
        parts.append(f'<path d="M{x_axis.start} {y:.1f}H{x_axis.end}" stroke="#ddd" class="grid"/>')
        parts.append(f'<text x="{x_axis.start - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_axis.ticks():
        x = x_axis.place(tick)
        parts.append(f'<text x="{x:.1f}" y="{y_axis.start + 16}" text-anchor="middle">{tick:g}</text>')
    frame = f"M{x_axis.start} {y_axis.end}V{y_axis.start}H{x_axis.end}"
    parts.append(f'<path d="{frame}" fill="none" stroke="#444" class="frame"/>')
    parts.append(f'<text x="{x_axis.end}" y="{y_axis.start + 29}" text-anchor="end">{escape(panel.x_label)}</text>')
    return [*parts, *_draw_lines(panel, spreads, x_axis, y_axis)]


def _draw_lines(panel: Panel, spreads: list[list[float]], x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for line, own in zip(panel.lines, spreads, strict=True):
        places = [(x_axis.place(x), y_axis.place(y)) for x, y in line.points]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        if line.points and line.marker != "hollow":
            parts.append(f'<path d="M{path}" {_stroke(line.number)}/>')
        for (x, y), (_, value), spread in zip(places, line.points, own, strict=True):
            if spread:
                ends = f"M{x:.1f} {y_axis.place(value - spread):.1f}V{y_axis.place(value + spread):.1f}"
                parts.append(f'<path d="{ends}" stroke="{_colour(line.number)}"/>')
            if line.marker:
                fill = "none" if line.marker == "hollow" else _colour(line.number)
                parts.append(
                    f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{_colour(line.number)}"/>'
                )
    return parts


def _axis(values: list[float], start: float, end: float, is_logarithmic: bool = False) -> Axis:
    if is_logarithmic:
        positive = [value for value in values if value > 0] or [1.0]
        low = 10.0 ** math.floor(math.log10(min(positive)))
        return Axis(low, max(10.0 ** math.ceil(math.log10(max(positive))), 10 * low), start, end, True)
    low, high = min(values), max(values)
    return Axis(low, high if high > low else low + 1, start, end)


def _stroke(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    return f'fill="none" stroke="{_colour(number)}" stroke-width="1.6" stroke-dasharray="{dash}"'


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]
