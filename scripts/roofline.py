"""The least time that DRConv's layers can take on an A100 and an H100: bytes over bandwidth or operations over peak.

    python scripts/roofline.py drconv_shufflenetv2_0.5x drconv_mobilenetv2_1.0x --batch-size 128
    python scripts/roofline.py --write    # the networks of MODELS at batch 128 into docs/performance_gpu.md

Per distinct layer: multiply-adds and bytes of the forward and the backward pass of the Triton kernels, what binds, and
the sum over the network. The bytes are those the kernels must move once: no cache misses, no launches. With "experts"
every image has filters of its own, which are mixed, written and read, and mixed again in the backward pass.
"""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv import DRConv2d
from drconv.model_files import load_model_config
from drconv.nn.cost import image_shape
from models import create_model
from scripts.benchmarking.generated import write_block

MODELS = (
    "drconv_shufflenetv2_0.5x",
    "drconv_shufflenetv2_1x",
    "drconv_mobilenetv1_1.0x",
    "drconv_mobilenetv2_1.0x",
)
GENERATORS = ("grouped", "experts")


@dataclass(frozen=True)
class Device:
    """Peak rates from the makers' data sheets, dense."""

    name: str
    bandwidth: float  # bytes per second
    half: float  # operations per second in bf16 or fp16; a multiply-add is two
    tf32: float


DEVICES = (Device("A100 40GB SXM", 1.555e12, 312e12, 156e12), Device("H100 SXM", 3.35e12, 989.4e12, 494.7e12))
TYPES = {"bf16": 2, "fp32": 4}  # bytes per value


@dataclass(frozen=True)
class Layer:
    """A 1x1 DRConv on B images of P positions; ``experts`` is 0 for static filters, the generator "grouped"."""

    channels: int
    out_channels: int
    regions: int
    positions: int
    experts: int = 0

    def kernels(self, batch: int, itemsize: int) -> dict[str, tuple[float, float]]:
        """(operations, bytes) of each part, forward then backward."""
        pixels = batch * self.positions
        product = 2.0 * pixels * self.channels * self.out_channels
        x, y = (pixels * width * itemsize for width in (self.channels, self.out_channels))
        filters = self.regions * self.channels * self.out_channels * itemsize * (batch if self.experts else 1)
        logits, order, mask = pixels * self.regions * 4, pixels * 4, pixels
        costs = {
            "sort": (0.0, logits + 2 * mask + order),
            "output": (product, x + y + filters + order),
            "of x": (product, x + y + filters + order),
            "of filters": (product, x + y + filters + order),
            "of logits": (self.regions * product, x + y + filters + 2 * logits),
        }
        if self.experts:
            shared = self.experts * self.channels * self.out_channels * itemsize
            mix = 2.0 * batch * self.regions * self.experts * self.channels * self.out_channels
            costs |= dict.fromkeys(("mix", "mix again", "of experts", "of gate"), (mix, shared + filters))
        return costs


def peak(device: Device, type_name: str) -> float:
    """Operations per second; fp32 is computed as three TF32 products."""
    return device.half if type_name == "bf16" else device.tf32 / 3


def floor(layer: Layer, batch: int, type_name: str, device: Device, parts: tuple[str, ...]) -> float:
    """Seconds that the named parts take at least, one after the other; parts that a layer has not take none."""
    costs = layer.kernels(batch, TYPES[type_name])
    return sum(bound(*costs[part], peak(device, type_name), device) for part in parts if part in costs)


def bound(operations: float, moved: float, rate: float, device: Device) -> float:
    """Seconds, whichever takes longer: the operations at this rate or the bytes at the device's bandwidth."""
    return max(operations / rate, moved / device.bandwidth)


FORWARD = ("mix", "sort", "output")
BACKWARD = ("mix again", "of x", "of filters", "of logits", "of experts", "of gate")


@dataclass(frozen=True)
class Place:
    """Where a network has a layer: a layer and the height and width of its input."""

    layer: Layer
    size: tuple[int, int]


def find_places(network: nn.Module, image_size: int) -> Counter[Place]:
    """The DRConv layers of a network and how often each shape occurs, in their order."""
    found: Counter[Place] = Counter()

    def note(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        positions = output.shape[2] * output.shape[3]
        shape = (module.in_channels, module.out_channels, module.regions, positions, module.experts or 0)
        found[Place(Layer(*shape), (inputs[0].shape[2], inputs[0].shape[3]))] += 1

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, DRConv2d)]
    shape = image_shape(getattr(network, "input_size", image_size))
    with torch.inference_mode():
        network.eval()(torch.zeros(1, *shape))
    for hook in hooks:
        hook.remove()
    return found


def find_layers(model: str, image_size: int, generator: str = "grouped") -> Counter[Layer]:
    """The DRConv layers of a file of ``configs/model`` and how often each shape occurs."""
    config = load_model_config(model)
    config.drconv.generator = generator
    network = create_model(config, 1000, image_size)
    found: Counter[Layer] = Counter()
    for place, times in find_places(network, image_size).items():
        found[place.layer] += times
    return found


def report(model: str, batch: int, image_size: int, generator: str = "grouped") -> list[str]:
    """The tables of one network in Markdown."""
    layers = find_layers(model, image_size, generator)
    lines = [f"### {model}, {generator}, batch {batch}, {image_size} pixels", ""]
    columns = [f"{device.name} {name}" for device in DEVICES for name in TYPES]
    lines += ["| layer C -> O @ P, m | times | GFLOP forward | backward | MB bf16 forward | backward | "]
    lines[-1] += " | ".join(f"{column}, us" for column in columns) + " |"
    lines += ["|" + "---|" * (6 + len(columns))]
    totals = [0.0] * len(columns)
    for layer, times in layers.items():
        costs = layer.kernels(batch, 2)
        sums = [sum(costs[part][i] for part in parts if part in costs) for i in (0, 1) for parts in (FORWARD, BACKWARD)]
        cells = [f"{sums[0] / 1e9:.2f}", f"{sums[1] / 1e9:.2f}", f"{sums[2] / 1e6:.1f}", f"{sums[3] / 1e6:.1f}"]
        for i, (device, name) in enumerate((device, name) for device in DEVICES for name in TYPES):
            forward, backward = (floor(layer, batch, name, device, parts) for parts in (FORWARD, BACKWARD))
            totals[i] += times * (forward + backward)
            cells.append(f"{forward * 1e6:.0f} + {backward * 1e6:.0f}")
        title = f"{layer.channels} -> {layer.out_channels} @ {layer.positions}, {layer.regions}"
        lines.append(f"| {title} | {times} | " + " | ".join(cells) + " |")
    lines.append("| all, ms | | | | | | " + " | ".join(f"{total * 1e3:.2f}" for total in totals) + " |")
    return [*lines, ""]


def page() -> str:
    """What stands in ``docs/performance_gpu.md``."""
    reports = [report(model, 128, 224, generator) for generator in GENERATORS for model in MODELS]
    return "\n".join(line for lines in reports for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help="files of configs/model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--generator", choices=GENERATORS, default="grouped")
    parser.add_argument("--write", action="store_true", help="write the tables of docs/performance_gpu.md, no others")
    arguments = parser.parse_args()
    os.environ.setdefault("DRCONV_KERNEL", "torch")  # shapes are all that is needed: do not wait for a compiler
    if arguments.write:
        write_block("floor", page())
        return
    for model in arguments.models:
        print("\n".join(report(model, arguments.batch_size, arguments.image_size, arguments.generator)))


if __name__ == "__main__":
    main()
