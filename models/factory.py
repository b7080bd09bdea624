"""From a ``model`` configuration to a network: built plain, then convolutions are replaced."""

import difflib
import importlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import nn

from drconv.config import ModelConfig
from drconv.errors import ConfigError
from drconv.nn import substitute
from drconv.nn.routing import try_routing

LOSS_OPTIONS = ("balance_loss", "z_loss")  # options of model.drconv that the task reads, not the layer
TRIAL_OPTIONS = ("soft_until", "error_loss", "error_damping")  # how its layers train, see drconv.nn.routing
InputSize = int | tuple[int, int] | None
TABLE_SIZE = 64  # pixels, for counting the replaced layers of networks whose pictures differ in size
SMALL_IMAGE = 64  # pixels; stem=auto keeps the resolution up to this size

# Module and function that build each network; imported on use, because torchvision and timm take seconds.
BUILDERS: dict[str, tuple[str, str]] = {
    "shufflenetv2": (".shufflenetv2", "ShuffleNetV2"),
    "mobilenetv1": (".mobilenetv1", "build_mobilenetv1"),
    "mobilenetv1_short": (".mobilenetv1_short", "ShortMobileNetV1"),
    "mobilenetv2": (".mobilenetv2", "build_mobilenetv2"),
    "mobilefacenet": (".mobilefacenet", "build_mobilefacenet"),
    "detnas_300m": (".detnas", "build_detnas"),
}
WITHOUT_CLASSES = ("mobilefacenet",)  # gives embeddings
# The detectors, built from a width, a number of classes and the options of model.detector.
DETECTORS: dict[str, tuple[str, str]] = {
    "mask_rcnn_r50": (".mask_rcnn", "build_mask_rcnn"),
    "detnas_300m_fpn": (".mask_rcnn", "build_detnas_fpn"),
}

# The classifiers that CondConv's authors replaced too, without which the printed 600M and 329M are not reached.
CONDCONV_CLASSIFIERS = {"mobilenetv1": "classifier", "mobilenetv2": "classifier.1"}


def available() -> list[str]:
    """The names of the plain networks, choices of ``model.name``."""
    return sorted(BUILDERS | DETECTORS)


def create_model(config: ModelConfig, num_classes: int | None, input_size: InputSize) -> nn.Module:
    """Builds a network for pictures (B, 3, H, W), giving logits (B, num_classes).

    MobileFaceNet takes faces (B, 3, 112, 96) and gives embeddings (B, 128); both numbers below mean nothing to it.
    Detectors give losses or detections, see ``models.detector``.

    Args:
        config: network, width, stem, and the convolution that replaces those of ``replaceable_layers`` (D3).
        num_classes: number of classes; None where the data have none, for networks without a classifier.
        input_size: pixels, a side or rows and columns, decides the stem of ``stem=auto``; None where pictures differ.

    Raises:
        ConfigError: unknown network, or a width, pattern or option that does not fit it.
    """
    rows = input_size if isinstance(input_size, int) or input_size is None else input_size[0]
    small_stem = config.stem == "small" or (config.stem == "auto" and rows is not None and rows <= SMALL_IMAGE)
    try:
        if config.name in DETECTORS:
            network = _builder(config.name)(config.width, num_classes, config.detector)
        elif num_classes is None and config.name not in WITHOUT_CLASSES:
            raise ConfigError(f"model={config.name} needs a number of classes, and the data have none; check task.name")
        else:
            network = _builder(config.name)(config.width, num_classes, small_stem, config.dropout)
        _replace(network, config, input_size)
    except ValueError as error:
        raise ConfigError(f"model={config.name} cannot be built: {error}") from error
    return network


def _builder(name: str) -> Callable[..., nn.Module]:
    builders = BUILDERS | DETECTORS
    if name not in builders:
        near = difflib.get_close_matches(name, builders, n=2) or available()
        raise ConfigError(f"model.name={name} is not known; did you mean {' or '.join(near)}?")
    module, function = builders[name]
    return getattr(importlib.import_module(module, __package__), function)


def _replace(network: nn.Module, config: ModelConfig, input_size: InputSize) -> None:
    if config.conv == "standard":
        return
    options: dict[str, dict[str, Any]] = {"drconv": asdict(config.drconv), "condconv": asdict(config.condconv)}
    chosen = {name: value for name, value in options.get(config.conv, {}).items() if name not in LOSS_OPTIONS}
    trial = {name: chosen.pop(name) for name in TRIAL_OPTIONS if name in chosen}
    layers = config.layers or _published_layers(network, config)
    substitute(
        network, config.conv, layers, input_size=getattr(network, "input_size", input_size or TABLE_SIZE), **chosen
    )
    if trial:
        try_routing(network, **trial)


def _published_layers(network: nn.Module, config: ModelConfig) -> list[str]:
    """The layers the paper replaces (D3), and what the authors of a rival replaced besides."""
    layers: list[str] = list(network.replaceable_layers)  # type: ignore[arg-type]
    if config.conv == "condconv" and config.name in CONDCONV_CLASSIFIERS:
        layers.append(_make_convolution(network, CONDCONV_CLASSIFIERS[config.name]))
    if config.conv == "deformable":
        layers += [name for name, module in network.named_modules() if _is_depthwise(module)]
    return layers


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1


def _make_convolution(network: nn.Module, name: str) -> str:
    """Turns a linear layer into the 1x1 convolution it equals, on a map of one pixel; returns the latter's name."""
    linear = network.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1)
    conv.weight.data = linear.weight.data[:, :, None, None]
    conv.bias = linear.bias
    parent, _, child = name.rpartition(".")
    layers = nn.Sequential(nn.Unflatten(1, (linear.in_features, 1, 1)), conv, nn.Flatten())
    setattr(network.get_submodule(parent), child, layers)
    return f"{name}.1"
