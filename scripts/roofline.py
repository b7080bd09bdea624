"""The least time that DRConv's layers can take on an A100 and an H100: bytes over bandwidth or operations over peak.

    python scripts/roofline.py drconv_shufflenetv2_0.5x drconv_mobilenetv2_1.0x --batch-size 128
    python scripts/roofline.py --write    # three networks at batch 128 into docs/performance_gpu.md

Per distinct layer: multiply-adds and bytes of the forward and the backward pass of the Triton kernels, what binds, and
the sum over the network. The bytes are those the kernels must move once: no cache misses, no launches.
"""

import argparse
import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv import DRConv2d
from models import create_model
from scripts.cost import load_model_config
from scripts.generated import write_block

MODELS = ("drconv_shufflenetv2_0.5x", "drconv_shufflenetv2_1x", "drconv_mobilenetv2_1.0x")


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
    """A 1x1 DRConv with static filters on B images of P positions."""

    channels: int
    out_channels: int
    regions: int
    positions: int

    def kernels(self, batch: int, itemsize: int) -> dict[str, tuple[float, float]]:
        """(operations, bytes) of each part, forward then backward."""
        pixels = batch * self.positions
        product = 2.0 * pixels * self.channels * self.out_channels
        x, y = (pixels * width * itemsize for width in (self.channels, self.out_channels))
        filters = self.regions * self.channels * self.out_channels * itemsize
        logits, order, mask = pixels * self.regions * 4, pixels * 4, pixels
        return {
            "sort": (0.0, logits + 2 * mask + order),
            "output": (product, x + y + filters + order),
            "of x": (product, x + y + filters + order),
            "of filters": (product, x + y + filters + order),
            "of logits": (self.regions * product, x + y + filters + 2 * logits),
        }


def peak(device: Device, type_name: str) -> float:
    """Operations per second; fp32 is computed as three TF32 products."""
    return device.half if type_name == "bf16" else device.tf32 / 3


def floor(layer: Layer, batch: int, type_name: str, device: Device, parts: tuple[str, ...]) -> float:
    """Seconds that the named parts take at least, one after the other."""
    costs = layer.kernels(batch, TYPES[type_name])
    rate = peak(device, type_name)
    return sum(max(costs[part][0] / rate, costs[part][1] / device.bandwidth) for part in parts)


FORWARD = ("sort", "output")
BACKWARD = ("of x", "of filters", "of logits")


def find_layers(model: str, image_size: int) -> Counter[Layer]:
    """The DRConv layers of a file of ``configs/model`` and how often each shape occurs."""
    network = create_model(load_model_config(model), 1000, image_size).eval()
    found: Counter[Layer] = Counter()

    def note(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        positions = output.shape[2] * output.shape[3]
        found[Layer(module.in_channels, module.out_channels, module.regions, positions)] += 1

    for module in network.modules():
        if isinstance(module, DRConv2d):
            module.register_forward_hook(note)
    with torch.inference_mode():
        network(torch.zeros(1, 3, image_size, image_size))
    return found


def report(model: str, batch: int, image_size: int) -> list[str]:
    """The tables of one network in Markdown."""
    layers = find_layers(model, image_size)
    lines = [f"### {model}, batch {batch}, {image_size} pixels", ""]
    columns = [f"{device.name} {name}" for device in DEVICES for name in TYPES]
    lines += ["| layer C -> O @ P, m | times | GFLOP forward | backward | MB bf16 forward | backward | "]
    lines[-1] += " | ".join(f"{column}, us" for column in columns) + " |"
    lines += ["|" + "---|" * (6 + len(columns))]
    totals = [0.0] * len(columns)
    for layer, times in layers.items():
        costs = layer.kernels(batch, 2)
        sums = [sum(costs[part][i] for part in parts) for i in (0, 1) for parts in (FORWARD, BACKWARD)]
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
    return "\n".join(line for model in MODELS for line in report(model, batch=128, image_size=224))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help="files of configs/model")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--write", action="store_true", help="write the tables of docs/performance_gpu.md, no others")
    arguments = parser.parse_args()
    os.environ.setdefault("DRCONV_KERNEL", "torch")  # shapes are all that is needed: do not wait for a compiler
    if arguments.write:
        write_block("floor", page())
        return
    for model in arguments.models:
        print("\n".join(report(model, arguments.batch_size, arguments.image_size)))


if __name__ == "__main__":
    main()
