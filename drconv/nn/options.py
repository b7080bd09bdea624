"""Checks of the options that layers are built with; messages name the option and what it may be."""

import math
import operator
from collections.abc import Sequence
from typing import Any

from drconv.nn.kernels.geometry import Pair, pair

GENERATORS = ("grouped", "experts")

# The options of the form that the paper prints, where the defaults are what trains stably (D11).
PRINTED_FORM: dict[str, Any] = {
    "init_gain": None,
    "filter_sharing": 0.0,
    "generator_gradient": 1.0,
    "guide_norm": "none",
}


def at_least(name: str, value: Any, lowest: int) -> int:
    """A whole number.

    Raises:
        ValueError: it is no whole number, or below ``lowest``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = lowest - 1
    if isinstance(value, bool) or number < lowest:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {lowest}")
    return number


def positive(name: str, value: Any) -> int:
    """A whole number of at least 1; raises ``ValueError`` otherwise."""
    return at_least(name, value, 1)


def within(name: str, value: Any, lowest: float, highest: float = math.inf) -> float:
    """A finite number.

    Raises:
        ValueError: it is none, or outside of the bounds.
    """
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    if not is_number or not lowest <= value <= highest:
        bounds = f"at least {lowest}" if math.isinf(highest) else f"between {lowest} and {highest}"
        raise ValueError(f"{name}={value!r} must be a number {bounds}")
    return value


def window(
    kernel_size: int | Sequence[int],
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
) -> tuple[Pair, Pair, Pair, Pair]:
    """The options of ``nn.Conv2d`` as pairs of rows and columns; raises ``ValueError`` where one is out of range."""
    lowest = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    given = (kernel_size, stride, padding, dilation)
    pairs = [_numbers(name, value, lowest[name]) for name, value in zip(lowest, given, strict=True)]
    return pairs[0], pairs[1], pairs[2], pairs[3]


def _numbers(name: str, value: int | Sequence[int], lowest: int) -> Pair:
    try:
        rows, columns = pair(value)
    except ValueError as error:
        raise ValueError(f"{name}={value!r}: {error}") from None
    return at_least(name, rows, lowest), at_least(name, columns, lowest)


def channels(in_channels: Any, out_channels: Any, groups: Any) -> tuple[int, int, int]:
    """Channel counts and groups; raises ``ValueError`` where one is no positive whole number or they do not fit."""
    given = (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups))
    ins, outs, parts = (positive(name, value) for name, value in given)
    if ins % parts or outs % parts:
        raise ValueError(f"groups={parts} must divide in_channels={ins} and out_channels={outs}; change one of them")
    return ins, outs, parts


def check_hidden(hidden: int | None, regions: int) -> int:
    """Width of DRConv's grouped generator; raises ``ValueError`` where M does not divide it."""
    hidden = regions if hidden is None else at_least("hidden", hidden, regions)
    if hidden % regions:
        raise ValueError(
            f"hidden={hidden} must be a multiple of regions={regions}; change hidden, or leave it None to use regions"
        )
    return hidden


def check_choices(generator: str, generator_bias: bool, scale: bool, guide: str) -> None:
    """The named options of DRConv against each other; raises ``ValueError`` where they do not fit."""
    if generator not in GENERATORS:
        raise ValueError(f"generator={generator!r} is unknown; use one of {', '.join(GENERATORS)}")
    if guide not in ("own", "shared"):
        raise ValueError(f'guide={guide!r} is unknown; use "own" or "shared"')
    if generator_bias and (generator == "experts" or not scale):
        raise ValueError(
            f"generator_bias=True needs generator='grouped' and scale=True, found generator={generator!r} and "
            f"scale={scale}; switch generator_bias off"
        )
    if generator == "experts" and not scale:
        raise ValueError("scale=False belongs to generator='grouped'; leave it True with generator='experts'")
