"""Single layers over the shapes that the networks really have, beside what the hardware allows."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import nn

from drconv.nn import DRConv2d
from scripts.benchmarking.sides import create, inference, layer_step
from scripts.roofline import BACKWARD, FORWARD, Device, Layer, Place, bound, find_places, floor

SIDES = ("plain", "grouped", "experts", "dense")


def distinct_places(networks: Iterable[str]) -> dict[Place, str]:
    """The shapes of the networks' DRConvs, each with the first network that has it."""
    found: dict[Place, str] = {}
    for network in networks:
        for place in find_places(create(network, "grouped"), 224):
            found.setdefault(place, network)
    return found


def layer_runs(place: Place, sides: Iterable[str], batch: int, device: str, train: bool) -> dict[str, Callable]:
    """One call of each side: a 1x1 layer with guide and generator, beside a plain convolution."""
    layer = place.layer
    x = torch.randn(batch, layer.channels, *place.size, device=device).contiguous(memory_format=torch.channels_last)
    runs = {}
    for side in sides:
        module: nn.Module = nn.Conv2d(layer.channels, layer.out_channels, 1, bias=False)
        if side != "plain":
            generator = "experts" if side == "experts" else "grouped"
            options = {"regions": layer.regions, "generator": generator, "guide_norm": "batch"}
            module = DRConv2d(layer.channels, layer.out_channels, 1, bias=False, **options)
        module = module.to(device, memory_format=torch.channels_last).train(train)
        runs[side] = (layer_step if train else inference)(module, side, x)
    return runs


def floor_of_side(layer: Layer, side: str, batch: int, train: bool, device: Device) -> float:
    """Seconds in fp32 that the operations and bytes of a side take at least, guide and gate left out."""
    passes = FORWARD + BACKWARD if train else FORWARD
    if side in ("grouped", "experts"):
        return floor(replace(layer, experts=8 if side == "experts" else 0), batch, "fp32", device, passes)
    pixels = batch * layer.positions
    product = 2.0 * pixels * layer.channels * layer.out_channels
    x, y = 4 * pixels * layer.channels, 4 * pixels * layer.out_channels
    filters = 4 * layer.channels * layer.out_channels
    if side == "plain":
        tf32 = torch.backends.cudnn.conv.fp32_precision == "tf32"
        rate = device.tf32 if tf32 else device.tf32 / 3
        return (3 if train else 1) * bound(product, x + y + filters, rate, device)
    # Dense: m filters for each image, m outputs written and read; backward writes and reads their gradients.
    m, filters = layer.regions, filters * layer.regions * batch
    seconds = bound(m * product, x + filters + (2 * m + 1) * y, device.tf32 / 3, device)
    if train:
        seconds += bound(2 * m * product, 2 * (x + filters) + (4 * m + 1) * y, device.tf32 / 3, device)
    return seconds


def measured_device() -> Device:
    """Bandwidth and peak of the CUDA device in use, from its clocks."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    bandwidth = 2e3 * properties.memory_clock_rate * properties.memory_bus_width / 8
    per_clock = {8: 2048, 9: 4096}.get(properties.major, 1024)  # operations in fp16 of a multiprocessor, dense
    half = 1e3 * properties.clock_rate * properties.multi_processor_count * per_clock
    return Device(properties.name, bandwidth, half, half / 2)
