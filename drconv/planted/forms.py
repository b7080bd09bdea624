"""The layers that are put to the test, by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from drconv.nn.condconv import CondConv2d
from drconv.nn.conv import DRConv2d
from drconv.nn.options import PRINTED_FORM
from drconv.nn.routing import RoutingTrial

TWO_PARTS = PRINTED_FORM | {"filter_sharing": 0.9, "generator_gradient": 0.1}
FOUR_PARTS = {"init_gain": 0.5, "filter_sharing": 0.9, "generator_gradient": 0.1, "guide_norm": "batch"}
# What a form changes of the layer's defaults; forms that are no DRConv are None.
DRCONV_FORMS: dict[str, dict[str, Any]] = {
    "default": {},
    "printed": PRINTED_FORM,
    "two_parts": TWO_PARTS,
    "two_parts_scale": TWO_PARTS | {"guide_norm": "scale"},
    "four_parts": FOUR_PARTS,
    "released": PRINTED_FORM | {"generator": "experts"},
    "only_filter_sharing": PRINTED_FORM | {"filter_sharing": 0.9},
    "only_generator_gradient": PRINTED_FORM | {"generator_gradient": 0.1},
    "no_generator": TWO_PARTS | {"scale": False},
    "small_start": TWO_PARTS | {"init_gain": 0.5},
    "sharing_falls": TWO_PARTS | {"filter_sharing_end": 0.0},
    "sharing_half": TWO_PARTS | {"filter_sharing": 0.5},
    "features_detached": TWO_PARTS | {"feature_gradient": 0.0},
    "guide_frozen": TWO_PARTS | {"guide_frozen": True},
}
TRIALS = {  # the default form, trained in another way
    "soft_first": RoutingTrial(soft_until=0.5),
    "error_loss": RoutingTrial(error_loss=0.1, error_damping=0.1),
}
RIVALS: dict[str, Callable[[int], nn.Module]] = {
    "condconv": lambda channels: CondConv2d(channels, channels, 1, experts=8),
    "plain": lambda channels: nn.Conv2d(channels, channels, 1),
}
FORMS = (*DRCONV_FORMS, *TRIALS, *RIVALS)


def make_layer(form: str, channels: int, regions: int) -> nn.Module:
    """A 1x1 layer from ``channels`` to as many.

    Raises:
        ValueError: the form is unknown.
    """
    if form in RIVALS:
        return RIVALS[form](channels)
    if form not in FORMS:
        raise ValueError(f"form {form!r} is unknown; use one of {', '.join(FORMS)}")
    layer = DRConv2d(channels, channels, 1, regions=regions, **DRCONV_FORMS.get(form, TWO_PARTS))
    layer.trial = TRIALS.get(form)
    return layer
