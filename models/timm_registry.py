"""The networks under timm's names: ``timm.create_model("drconv_shufflenetv2_x0_5", num_classes=10)``.

Importing this module registers them: ``import drconv_models.timm_registry`` where the package is installed,
``import models.timm_registry`` in a checkout. Importing the package alone does it when timm was imported before.
Options of the convolution are keyword arguments: ``timm.create_model("drconv_shufflenetv2_x0_5", regions=4)``.
"""

from typing import Any

from timm.models import register_model
from torch import nn

from drconv.config import CondConvConfig, DRConvConfig, ModelConfig

from .factory import create_model

WIDTHS: dict[str, tuple[float, ...]] = {
    "shufflenetv2": (0.25, 0.5, 1.0, 1.5, 2.0),
    "mobilenetv1": (0.25, 0.5, 0.75, 1.0),
    "mobilenetv2": (0.25, 0.5, 0.75, 1.0),
}
# The convolution and its options, by the prefix of the name.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "": ("standard", {}),
    "drconv_": ("drconv", {}),
    "drconv_lite_": ("drconv", {"groups": 2}),
    "drconv_released_": ("drconv", {"generator": "experts", "filter_sharing": 0.0, "generator_gradient": 1.0}),
    "condconv_": ("condconv", {}),
}
# What timm hands to every network for its own downloads.
HUB_KEYS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _register(name: str, network: str, width: float, conv: str, preset: dict[str, Any]) -> None:
    def build(
        pretrained: bool = False,
        num_classes: int = 1000,
        img_size: int = 224,
        drop_rate: float | None = None,
        **options: Any,
    ) -> nn.Module:
        if pretrained:
            raise ValueError(f"{name} has no pretrained weights; use pretrained=False and load your own")
        options = preset | {key: value for key, value in options.items() if key not in HUB_KEYS}
        config = ModelConfig(network, width, dropout=drop_rate, conv=conv)
        if conv == "drconv":
            config.drconv = DRConvConfig(**options)
        elif conv == "condconv":
            config.condconv = CondConvConfig(**options)
        elif options:
            raise TypeError(f"{name} takes no option {', '.join(options)}")
        return create_model(config, num_classes, img_size)

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"{network} of width {width}, {conv} convolution."
    register_model(build)


for _network, _widths in WIDTHS.items():
    for _width in _widths:
        for _prefix, (_conv, _preset) in VARIANTS.items():
            _name = f"{_prefix}{_network}_x{_width}".replace(".", "_")
            _register(_name, _network, _width, _conv, _preset)

# DetNAS-300M has one size.
_register("detnas_300m", "detnas_300m", 1.0, "standard", {})
_register("drconv_detnas_300m", "detnas_300m", 1.0, "drconv", {})
# Deformable kernels stand in one row of Table 1.
_register("dk_mobilenetv2_x1_0", "mobilenetv2", 1.0, "deformable", {})
