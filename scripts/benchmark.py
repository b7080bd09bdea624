"""Time and memory of DRConv beside the plain network, in one process with alternating sides.

    python scripts/benchmark.py                                   # inference, training and memory of every network
    python scripts/benchmark.py --parts layers regions --threads 2 --json out.json

Every round runs all sides one after the other, so that a disturbance meets them alike; printed are medians, the middle
half of the rounds, and the median over the rounds of the ratio to the first side. On CUDA times come from events.
"""

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from drconv.config import DRConvConfig, ModelConfig
from drconv.nn import DRConv2d, fuse_for_inference
from models import create_model

NETWORKS = {
    "shufflenetv2_0.5x": ("shufflenetv2", 0.5),
    "shufflenetv2_1x": ("shufflenetv2", 1.0),
    "mobilenetv1": ("mobilenetv1", 1.0),
    "mobilenetv2": ("mobilenetv2", 1.0),
    "mobilefacenet": ("mobilefacenet", 1.0),
}
Times = dict[str, list[float]]
SIDES = ("plain", "grouped", "experts", "dense", "condconv", "fused")
PARTS = ("inference", "training", "memory", "layers", "regions", "resolution", "batch", "threads")
# Targets of the ratio to the plain network: at batch 1, at batch 32, of a training step, of its peak memory.
TARGETS = {
    ("inference", 1, "grouped"): 1.20,
    ("inference", 32, "grouped"): 1.25,
    ("inference", 1, "experts"): 2.0,
    ("inference", 32, "experts"): 2.0,
    ("inference", 1, "fused"): 1.0,
    ("inference", 32, "fused"): 1.0,
    ("training", 32, "grouped"): 1.8,
    ("memory", 32, "grouped"): 1.4,
}
LAYERS = ((24, 24, 28), (48, 48, 14), (96, 96, 7), (58, 58, 28), (116, 116, 14), (232, 232, 7), (320, 1280, 7))


@dataclass(frozen=True)
class Row:
    """One measurement: milliseconds, or MiB for memory; the ratio is to the first side of the same case."""

    part: str
    case: str
    batch: int
    side: str
    median: float
    low: float
    high: float
    ratio: float
    target: float | None
    roofline: float | None = None


@contextmanager
def kernel(name: str | None) -> Iterator[None]:
    """Force a kernel through the environment variable."""
    before = os.environ.pop("DRCONV_KERNEL", None)
    if name:
        os.environ["DRCONV_KERNEL"] = name
    try:
        yield
    finally:
        os.environ.pop("DRCONV_KERNEL", None)
        if before:
            os.environ["DRCONV_KERNEL"] = before


def image(network: str, batch: int, size: int, device: str) -> Tensor:
    shape = (3, 112, 96) if network == "mobilefacenet" else (3, size, size)
    return torch.randn(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)


def build(network: str, side: str, device: str, regions: int = 8, size: int = 224) -> nn.Module:
    """A network of one side, in evaluation mode, with running statistics of random pictures."""
    name, width = NETWORKS[network]
    generator = "experts" if side == "experts" else "grouped"
    conv = {"plain": "standard", "condconv": "condconv"}.get(side, "drconv")
    options = DRConvConfig(regions=regions, generator=generator, generator_bias=False)
    torch.manual_seed(0)
    model = create_model(ModelConfig(name=name, width=width, conv=conv, drconv=options), 1000, size)
    model = model.to(device=device, memory_format=torch.channels_last)
    with torch.no_grad():
        model.train()(image(network, 8, size, device))
    model.eval()
    return fuse_for_inference(model) if side == "fused" else model


def inference(model: nn.Module, side: str, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), kernel("reference" if side == "dense" else None):
            model(x)

    return run


def training_step(model: nn.Module, side: str, x: Tensor) -> Callable[[], None]:
    """Forward, backward and an SGD step; the loss is the outputs' mean square."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def run() -> None:
        with kernel("reference" if side == "dense" else None):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    return run


def time_once(run: Callable[[], None], device: str, clock: Callable[[], float]) -> float:
    """Milliseconds of one call."""
    if device == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    begin = clock()
    run()
    return (clock() - begin) * 1e3


def alternate(runs: dict[str, Callable[[], None]], arguments: argparse.Namespace, share: float = 1) -> Times:
    """Times of each side over rounds that go through all sides, at least three of them."""
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    for run in runs.values():
        run()
    times: Times = {side: [] for side in runs}
    begin = time.perf_counter()
    while time.perf_counter() - begin < share * arguments.seconds or len(next(iter(times.values()))) < 3:
        for side, run in runs.items():
            times[side].append(time_once(run, arguments.device, clock))
    return times


def rows_of(part: str, case: str, batch: int, times: Times) -> list[Row]:
    base = next(iter(times.values()))
    rows = []
    for side, values in times.items():
        quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
        target = TARGETS.get((part, batch, side))
        rows.append(Row(part, case, batch, side, quarters[1], quarters[0], quarters[2], ratio, target))
    return rows


def measure_networks(arguments: argparse.Namespace, part: str) -> Iterator[Row]:
    make = inference if part == "inference" else training_step
    for network in arguments.networks:
        sides = [side for side in arguments.sides if part == "inference" or side != "fused"]
        for batch in arguments.batches if part == "inference" else [32]:
            runs = {}
            for side in sides:
                x = image(network, batch, 224, arguments.device)
                runs[side] = make(build(network, side, arguments.device), side, x)
            yield from rows_of(part, network, batch, alternate(runs, arguments))


def _peak_memory(network: str, side: str, threads: int, connection: "multiprocessing.connection.Connection") -> None:
    torch.set_num_threads(threads)
    model = build(network, side, "cpu")
    step = training_step(model, side, image(network, 32, 224, "cpu"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    connection.send((before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def peak_memory(network: str, side: str, threads: int) -> float:
    """MiB that two training steps at batch 32 add to the process, measured in a child."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_peak_memory, args=(network, side, threads, sender))
    child.start()
    before, after = receiver.recv()
    child.join()
    return (after - before) / 1024


def measure_memory(arguments: argparse.Namespace) -> Iterator[Row]:
    for network in arguments.networks:
        sides = [side for side in arguments.sides if side != "fused"]
        peaks = {side: [peak_memory(network, side, arguments.threads)] for side in sides}
        yield from rows_of("memory", network, 32, peaks)


def measure_layers(arguments: argparse.Namespace) -> Iterator[Row]:
    """One 1x1 layer beside a plain convolution, guide and generator included."""
    for channels, outputs, side in LAYERS:
        for batch in arguments.batches:
            x = torch.randn(batch, channels, side, side, device=arguments.device)
            x = x.contiguous(memory_format=torch.channels_last)
            plain = nn.Conv2d(channels, outputs, 1, bias=False)
            layers = {"plain": plain, "grouped": DRConv2d(channels, outputs, 1, bias=False)}
            layers["dense"] = layers["grouped"]
            runs = {
                name: inference(layer.to(arguments.device, memory_format=torch.channels_last).eval(), name, x)
                for name, layer in layers.items()
            }
            times = alternate(runs, arguments, 0.2)
            for row in rows_of("layers", f"{channels}->{outputs} at {side}x{side}", batch, times):
                moved = 4 * batch * side**2 * (channels + outputs) + 4 * channels * outputs
                yield Row(**asdict(row) | {"roofline": roofline(row.median, moved, arguments.device)})


def roofline(milliseconds: float, moved: int, device: str) -> float | None:
    """Share of the memory bandwidth that a layer's compulsory traffic reaches; only measured on CUDA."""
    if device != "cuda":
        return None
    properties = torch.cuda.get_device_properties(0)
    bandwidth = 2e3 * properties.memory_clock_rate * properties.memory_bus_width / 8
    return moved / (milliseconds * 1e-3) / bandwidth


def measure_sweep(arguments: argparse.Namespace, part: str) -> Iterator[Row]:
    """Inference of the first network over one variable, plain beside grouped."""
    network, threads = arguments.networks[0], arguments.threads
    values = {
        "regions": (1, 2, 4, 8, 16, 32),
        "resolution": (112, 160, 224, 320, 448),
        "batch": (1, 2, 4, 8, 16, 32, 64, 128),
        "threads": tuple(sorted({1, 2, os.cpu_count() or 1})),
    }[part]
    for value in values:
        size = value if part == "resolution" else 224
        batch = value if part == "batch" else 8
        torch.set_num_threads(value if part == "threads" else threads)
        x = image(network, batch, size, arguments.device)
        regions = value if part == "regions" else 8
        runs = {
            side: inference(build(network, side, arguments.device, regions, size), side, x)
            for side in ("plain", "grouped")
        }
        times = alternate(runs, arguments, 0.5)
        yield from rows_of(part, f"{network}, {part} {value}", batch, times)
    torch.set_num_threads(threads)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    for part in arguments.parts:
        if part in ("inference", "training"):
            yield from measure_networks(arguments, part)
        elif part == "memory":
            yield from measure_memory(arguments)
        elif part == "layers":
            yield from measure_layers(arguments)
        else:
            yield from measure_sweep(arguments, part)


def markdown(row: Row) -> str:
    unit = "MiB" if row.part == "memory" else "ms"
    target = "" if row.target is None else f"{row.target:.2f}"
    spread = f"{row.low:.2f} to {row.high:.2f}"
    share = "" if row.roofline is None else f" {row.roofline:.0%} |"
    return (
        f"| {row.part} | {row.case} | {row.batch} | {row.side} | {row.median:.2f} {unit} | {spread} | {row.ratio:.2f} "
        f"| {target} |{share}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["inference", "training", "memory"])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="the first is the base")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="per case, all sides together")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of the process, for a busy machine, 1 thread"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    print("| part | case | batch | side | median | middle half | ratio | target |\n" + "| --- " * 8 + "|")
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(markdown(row), flush=True)
    if arguments.json:
        document = {"torch": torch.__version__, "threads": arguments.threads, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
