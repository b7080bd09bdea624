"""The networks under timm's names: ``timm.create_model("drconv_shufflenetv2_x0_5", num_classes=10)``.

Importing this module registers them: ``import drconv_models.timm_registry`` where the package is installed,
``import models.timm_registry`` in a checkout. Importing the package alone does it when timm was imported before.

Every classifier and face network of ``configs/model`` is there in both spellings: ``drconv_shufflenetv2_x0_5``, and
``drconv_shufflenetv2_0.5x`` as the file is called (to timm a name with a tag, so that its lists show
``drconv_shufflenetv2_0``). Options of the convolution are keyword arguments: ``regions=4``.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from timm.layers import register_notrace_module
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from drconv.model_files import load_model_config, model_files
from drconv.nn import CondConv2d, DeformableKernelConv2d, DRConv2d, Guide, LocalConv2d
from drconv.nn.condconv import RoutedSequential
from drconv.nn.guide import GuidedSequential

from .factory import BUILDERS, CONDCONV_CLASSIFIERS, create_model

# Of every network its first convolution, its classifier, and how many maps features_only=True gives.
PLACES = {
    "shufflenetv2": ("conv1.0", "fc", 5),
    "mobilenetv1": ("conv_stem", "classifier", 5),
    "mobilenetv1_short": ("features.0.0", "classifier", 5),
    "mobilenetv2": ("features.0.0", "classifier.1", 5),
    "detnas_300m": ("body.stem.0", "fc", 5),
    "mobilefacenet": ("stem.0", "embedding.2", 4),
}
WIDTH = re.compile(r"_(\d)(?:\.(\d+))?x$")  # the end of a file's name
# Pixels that the recipes give: 0 to 255 and BGR for ImageNet; timm's come as RGB from 0 to 1.
IMAGENET = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1 / 255,) * 3,
    "crop_pct": 224 / 256,
    "interpolation": "bilinear",
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
}
FACES = {
    "mean": (0.5, 0.5, 0.5),
    "std": (128 / 255,) * 3,
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "input_size": (3, 112, 96),
    "pool_size": (7, 6),
    "fixed_input_size": True,
    "num_classes": 128,
}

for _layer in (DRConv2d, CondConv2d, LocalConv2d, DeformableKernelConv2d, Guide, GuidedSequential, RoutedSequential):
    register_notrace_module(_layer)  # fx stops before them: what they do depends on the values of the guide


class BGRConv2d(nn.Conv2d):
    """A first convolution that takes RGB and keeps its filters for BGR, in which the recipes train: weights files of
    runs fit, and give the same logits."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.flip(1), self.bias)


def timm_name(file: str) -> str:
    """The name of a file of ``configs/model`` as timm spells such: ``..._0.5x`` is ``..._x0_5``."""
    return WIDTH.sub(lambda found: f"_x{found[1]}_{found[2] or 0}", file)


def build(
    file: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    global_pool: str = "avg",
    img_size: int | tuple[int, int] | None = None,
    drop_rate: float | None = None,
    channel_order: str | None = None,
    **options: Any,
) -> nn.Module:
    """The network of a file of ``configs/model``, as timm calls it.

    Args:
        file: its name.
        num_classes: numbers in the output; 0 for pooled features.
        in_chans: channels of the pictures.
        global_pool: "avg", or "" with 0 classes for the map itself.
        img_size: pixels; networks for up to 64 keep the resolution (``model.stem``).
        drop_rate: dropout before the classifier; None for the network's own.
        channel_order: "bgr" or "rgb", of the pixels that the weights are for; None for that of the recipe.
        options: of the convolution, such as ``regions``.

    Raises:
        TypeError: the convolution has no such option.
        ConfigError: an option has a value that it cannot have.
    """
    config = load_model_config(file)
    is_face = config.name == "mobilefacenet"
    order = channel_order or ("rgb" if is_face else "bgr")
    if order not in ("bgr", "rgb"):
        raise ValueError(f"channel_order={order!r} is unknown; use 'bgr' or 'rgb'")
    config.dropout = config.dropout if drop_rate is None else drop_rate
    if options and config.conv not in ("drconv", "condconv"):
        raise TypeError(f"{file} takes no option {', '.join(options)}")
    if options:
        setattr(config, config.conv, replace(getattr(config, config.conv), **options))
    network: Any = create_model(config, num_classes or 1, None if is_face else img_size or 224)
    if (network.num_classes, global_pool) != (num_classes, "avg"):
        network.reset_classifier(num_classes, global_pool)
    network.in_chans = in_chans
    _set_input(network, PLACES[config.name][0], in_chans, order)
    return network


def _set_input(network: nn.Module, name: str, in_chans: int, order: str) -> None:
    """The first convolution for other channels, or for the other order of three."""
    old: Any = network.get_submodule(name)
    if in_chans == old.in_channels and order == "rgb":
        return
    kind = BGRConv2d if in_chans == 3 and order == "bgr" else nn.Conv2d
    geometry = {key: getattr(old, key) for key in ("kernel_size", "stride", "padding", "dilation")}
    new = kind(in_chans, old.out_channels, bias=old.bias is not None, **geometry)
    if in_chans == old.in_channels:
        new.load_state_dict(old.state_dict())
    else:  # every network draws it from one normal distribution, whatever its inputs
        nn.init.normal_(new.weight, std=float(old.weight.detach().std()))
        if old.bias is not None:
            new.bias = old.bias
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def default_cfg(path: Path) -> dict[str, Any] | None:
    """What timm keeps of a network, from its file; None for detectors."""
    content = yaml.safe_load(path.read_text())
    model = content.get("model", content)
    name, conv = model["name"], model.get("conv")
    if name not in BUILDERS:
        return None
    first, classifier, _ = PLACES[name]
    if conv == "condconv" and name in CONDCONV_CLASSIFIERS:
        classifier += ".1"
    own = {"pool_size": (56, 56)} if name == "mobilenetv1_short" else {}
    return {**(FACES if name == "mobilefacenet" else IMAGENET), **own, "first_conv": first, "classifier": classifier}


def _entry(name: str, files: dict[str, str]) -> Callable[..., nn.Module]:
    """The function that timm calls; ``files`` by tag, the first one without a tag too."""

    def create(pretrained: bool = False, pretrained_cfg: Any = None, **options: Any) -> nn.Module:
        tag = pretrained_cfg.get("tag") if isinstance(pretrained_cfg, dict) else getattr(pretrained_cfg, "tag", None)
        tag = pretrained_cfg if isinstance(pretrained_cfg, str) else tag
        file = files.get(tag or "", next(iter(files.values())))
        size = options.get("img_size")
        if size is not None:
            rows, columns = (size, size) if isinstance(size, int) else size
            overlay = {"input_size": (3, rows, columns), **(options.pop("pretrained_cfg_overlay", None) or {})}
            options["pretrained_cfg_overlay"] = overlay
        features = {"feature_cls": "hook", "out_indices": tuple(range(PLACES[load_model_config(file).name][2]))}
        return build_model_with_cfg(
            partial(build, file), name, pretrained, pretrained_cfg=pretrained_cfg, feature_cfg=features, **options
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"The network of configs/model/{next(iter(files.values()))}.yaml."
    return create


def _names() -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
    """Files by name and tag, and the configurations by ``name`` or ``name.tag``."""
    entries: dict[str, dict[str, str]] = {}
    configs: dict[str, Any] = {}
    for file, path in model_files().items():
        content = default_cfg(path)
        if content is None:
            continue
        for spelled in dict.fromkeys((timm_name(file), file)):
            name, _, tag = spelled.partition(".")
            entries.setdefault(name, {})[tag] = file
            configs[spelled] = content
    return entries, configs


_entries, _configs = _names()
default_cfgs = generate_default_cfgs(_configs)
for _name, _files in _entries.items():
    register_model(_entry(_name, _files))
