"""Put DRConv into networks of torchvision and timm and write what it costs to docs/networks.md.

    python scripts/networks.py

Each line is one call of ``substitute``; the same list is trained a step by tests/test_substitute.py.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import timm
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.nn import count_cost, is_pointwise, substitute
from drconv.nn.selection import Layers

HEADER = """# DRConv in networks of torchvision and timm

Written by `python scripts/networks.py`; do not edit. Each row is one call,

    substitute(network, "drconv", layers=..., regions=8)

on the library's own network, at {size} x {size} pixels. *Layers* is the pattern, or `is_pointwise`: every 1x1
convolution without channel groups. *Guides* counts those that a block shares and those that a layer owns. Parameters
and multiply-adds are in millions; the latter are true ones, guide and generator included. `tests/test_substitute.py`
takes every network of this table through a forward, a backward, a state-dict round trip and a deep copy.

| network | library | layers | replaced | guides shared, own | parameters | with DRConv | multiply-adds | with DRConv |
| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


@dataclass(frozen=True)
class Example:
    """A network and the convolutions that are replaced in it."""

    name: str
    library: str
    layers: str = "is_pointwise"  # or a glob pattern
    smallest: int = 32  # pixels that it still accepts

    def build(self, num_classes: int = 1000) -> nn.Module:
        """The library's network with random weights."""
        if self.library == "timm":
            return timm.create_model(self.name, num_classes=num_classes)
        options = {"init_weights": False, "aux_logits": False} if self.name == "googlenet" else {}
        return torchvision.models.get_model(self.name, num_classes=num_classes, **options)

    def select(self) -> Layers:
        """The argument ``layers`` of ``substitute``."""
        return is_pointwise if self.layers == "is_pointwise" else self.layers


NETWORKS = [
    Example("resnet18", "torchvision", "layer4.*.conv*"),
    Example("resnet50", "torchvision", "layer3.*.conv1"),
    Example("densenet121", "torchvision", "*.conv1"),
    Example("squeezenet1_1", "torchvision"),
    Example("googlenet", "torchvision", "inception*.branch1.conv"),
    Example("shufflenet_v2_x0_5", "torchvision", "stage*.branch2.[05]"),
    Example("mobilenet_v2", "torchvision"),
    Example("mobilenet_v3_small", "torchvision"),
    Example("mnasnet0_5", "torchvision"),
    Example("efficientnet_b0", "torchvision"),
    Example("regnet_x_400mf", "torchvision"),
    Example("regnet_y_400mf", "torchvision"),
    Example("mobilenetv1_100", "timm", "*.conv_pw"),
    Example("mobilenetv3_small_050", "timm"),
    Example("mobilenetv4_conv_small_050", "timm"),
    Example("efficientnet_lite0", "timm"),
    Example("ghostnet_050", "timm", "*.primary_conv.0"),
    Example("lcnet_035", "timm", "*.conv_pw"),
    Example("tinynet_e", "timm"),
    Example("mixnet_s", "timm", "blocks.*.conv_pw*"),
    Example("fbnetc_100", "timm"),
    Example("regnetx_002", "timm"),
    Example("repvgg_a0", "timm", "*.conv_1x1.conv"),
    Example("mobileone_s0", "timm", "stages.1.*.conv_kxk.*.conv"),
    Example("resnet26d", "timm", "layer3.*.conv[13]"),
    Example("resnext26ts", "timm"),
    Example("dla46_c", "timm"),
    Example("convnext_atto", "timm", "*.downsample.1"),
    Example("poolformer_s12", "timm", "*.mlp.fc1"),
    Example("edgenext_xx_small", "timm", "stages.*.conv_dw"),
]


def describe(example: Example, size: int) -> str:
    """The line of one network."""
    network = example.build()
    before = count_cost(network, size)
    table = substitute(network, "drconv", example.select(), input_size=size)
    after = count_cost(network, size)
    shared = sum(row.kind == "Guide" for row in table)
    own = sum(name.endswith(".guide") for name, _ in network.named_modules()) - shared
    layers = f"`{example.layers}`"
    millions = [before.parameters, after.parameters, before.multiply_adds, after.multiply_adds]
    numbers = [f"{number / 1e6:.2f}" for number in millions]
    return f"| {example.name} | {example.library} | {layers} | {len(table) - shared} | {shared}, {own} | " + (
        " | ".join(numbers) + " |"
    )


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/networks.md"))
    parser.add_argument("--size", type=int, default=224, help="side of the picture in pixels")
    arguments = parser.parse_args()
    lines = []
    for example in NETWORKS:
        lines.append(describe(example, arguments.size))
        print(lines[-1], flush=True)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(HEADER.format(size=arguments.size) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
