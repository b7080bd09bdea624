"""Time and memory of DRConv beside the plain network, in one process with alternating sides.

    python scripts/benchmark.py                                   # inference, training and memory of every network
    python scripts/benchmark.py --parts layers regions --threads 2 --json out.json

Every round runs all sides one after the other, so that a disturbance meets them alike; printed are medians, the middle
half of the rounds, and the median over the rounds of the ratio to the first side. On CUDA times come from events.

Sides: plain; grouped and experts, DRConv with either generator; dense, grouped by the reference kernel, which computes
all m outputs and selects, as everyone implements it; condconv, timm's layer with 8 experts and one routing per block;
fused, grouped after ``fuse_for_inference``. "dense / grouped" rows are ratios of these two sides.

Parts: inference, training (a step at batch 32) and memory (what such a step adds) of the networks; layers, single ones
over their real shapes, inference and forward + backward; shares, how much of the plain training step the replaced
convolutions take, and the floor it sets; regions, resolution, batch and threads, growth for the first network.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from scripts.benchmarking import layers as benchmark_layers
from scripts.benchmarking.memory import missing_for, peak_memory
from scripts.benchmarking.shares import floor_of_step, shares_of_step
from scripts.benchmarking.sides import NETWORKS, SIDES, build, image, inference, training_step

Times = dict[str, list[float]]
PARTS = ("inference", "training", "memory", "layers", "shares", "regions", "resolution", "batch", "threads")
QUOTIENT = "dense / grouped"
# Targets of the ratio to the plain network, at most; of a quotient, at least.
TARGETS = {
    ("inference", 1, "grouped"): 1.20,
    ("inference", 32, "grouped"): 1.25,
    ("inference", 1, "experts"): 2.0,
    ("inference", 32, "experts"): 2.0,
    ("training", 32, "grouped"): 1.8,
    ("memory", 32, "grouped"): 1.4,
    ("inference", 1, QUOTIENT): 3.0,
    ("inference", 32, QUOTIENT): 3.0,
    ("training", 32, QUOTIENT): 2.0,
}
FUSED_TARGET = ("shufflenetv2_0.5x", 1.0)  # the network that has one


@dataclass(frozen=True)
class Row:
    """One measurement: milliseconds, MiB (memory), percent (shares), or nothing (a quotient of two sides).

    The ratio is to the first side of the same case; of shares, the floor; of a quotient, the median itself.
    """

    part: str
    case: str
    batch: int
    side: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float
    target: float | None = None
    roofline: float | None = None  # share of the speed that bytes and operations allow; single layers on CUDA


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


def spread(values: list[float]) -> dict[str, float]:
    """Median and middle half."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return {"median": quarters[1], "low": quarters[0], "high": quarters[2]}


def target_of(part: str, case: str, batch: int, side: str) -> float | None:
    if side == "fused" and part == "inference" and case == FUSED_TARGET[0]:
        return FUSED_TARGET[1]
    return TARGETS.get((part, batch, side))


def rows_of(part: str, case: str, batch: int, times: Times, unit: str = "ms") -> list[Row]:
    """A row for each side, and one for dense over grouped where both are there."""
    base = next(iter(times.values()))
    rows = []
    for side, values in times.items():
        ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
        target = target_of(part, case, batch, side)
        rows.append(Row(part, case, batch, side, unit, **spread(values), ratio=ratio, target=target))
    if {"dense", "grouped"} <= times.keys() and unit == "ms":
        numbers = spread([d / g for d, g in zip(times["dense"], times["grouped"], strict=True)])
        target = target_of(part, case, batch, QUOTIENT)
        rows.append(Row(part, case, batch, QUOTIENT, "", **numbers, ratio=numbers["median"], target=target))
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


def measure_memory(arguments: argparse.Namespace) -> Iterator[Row]:
    for network in arguments.networks:
        peaks: Times = {side: [] for side in arguments.sides if side != "fused"}
        for _ in range(3):
            for side, values in peaks.items():
                values.append(peak_memory(network, side, arguments.device, arguments.threads))
        yield from rows_of("memory", network, 32, peaks, "MiB")


def measure_layers(arguments: argparse.Namespace) -> Iterator[Row]:
    sides = [side for side in arguments.sides if side in benchmark_layers.SIDES]
    device = benchmark_layers.measured_device() if arguments.device == "cuda" else None
    for place, network in benchmark_layers.distinct_places(arguments.networks).items():
        layer = place.layer
        case = f"{layer.channels}->{layer.out_channels} at {place.size[0]}x{place.size[1]}, {network}"
        for batch in arguments.batches:
            for part, train in (("layers, inference", False), ("layers, training", True)):
                runs = benchmark_layers.layer_runs(place, sides, batch, arguments.device, train)
                for row in rows_of(part, case, batch, alternate(runs, arguments, 0.2)):
                    if device is None or row.side == QUOTIENT:
                        yield row
                        continue
                    least = benchmark_layers.floor_of_side(layer, row.side, batch, train, device)
                    yield Row(**asdict(row) | {"roofline": 1e3 * least / row.median})


def measure_shares(arguments: argparse.Namespace) -> Iterator[Row]:
    for network in arguments.networks:
        numbers = spread([100 * share for share in shares_of_step(network, arguments.device)])
        least = floor_of_step(numbers["median"] / 100)
        yield Row("shares", network, 32, "replaced in plain", "%", **numbers, ratio=least)


def measure_sweep(arguments: argparse.Namespace, part: str) -> Iterator[Row]:
    """The first network over one variable, plain beside grouped: inference, over regions a training step too."""
    network, threads = arguments.networks[0], arguments.threads
    values = {
        "regions": (1, 2, 4, 8, 16, 32),
        "resolution": (112, 160, 224, 320, 448),
        "batch": (1, 2, 4, 8, 16, 32, 64, 128),
        "threads": tuple(sorted({1, 2, os.cpu_count() or 1})),
    }[part]
    kinds = {part: inference} | ({f"{part}, training": training_step} if part == "regions" else {})
    for value in values:
        size = value if part == "resolution" else 224
        batch = value if part == "batch" else 8
        torch.set_num_threads(value if part == "threads" else threads)
        x = image(network, batch, size, arguments.device)
        regions = value if part == "regions" else 8
        for name, make in kinds.items():
            runs = {
                side: make(build(network, side, arguments.device, regions, size), side, x)
                for side in ("plain", "grouped")
            }
            yield from rows_of(name, f"{network}, {part} {value}", batch, alternate(runs, arguments, 0.5))
    torch.set_num_threads(threads)


def measure(arguments: argparse.Namespace) -> Iterator[Row]:
    single = {"memory": measure_memory, "layers": measure_layers, "shares": measure_shares}
    for part in arguments.parts:
        if part in single:
            yield from single[part](arguments)
        elif part in ("inference", "training"):
            yield from measure_networks(arguments, part)
        else:
            yield from measure_sweep(arguments, part)


def header(has_roofline: bool) -> str:
    columns = ["part", "case", "batch", "side", "median", "middle half", "ratio", "target"]
    columns += ["roofline"] if has_roofline else []
    return f"| {' | '.join(columns)} |\n" + "| --- " * len(columns) + "|"


def markdown(row: Row, has_roofline: bool) -> str:
    word = "at least" if row.side == QUOTIENT else "at most"
    cells = [row.part, row.case, str(row.batch), row.side, f"{row.median:.2f} {row.unit}".rstrip()]
    cells += [f"{row.low:.2f} to {row.high:.2f}", f"{row.ratio:.2f}"]
    cells += ["" if row.target is None else f"{word} {row.target:.2f}"]
    if has_roofline:
        cells.append("" if row.roofline is None else f"{row.roofline:.0%}")
    return f"| {' | '.join(cells)} |"


def write_json(path: Path, arguments: argparse.Namespace, rows: list[Row]) -> None:
    """Everything so far, under a temporary name first: a run that is stopped leaves what it has measured."""
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    document = {"torch": torch.__version__, "device": device, "threads": arguments.threads}
    document["rows"] = [asdict(row) for row in rows]
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


def parse(words: list[str] | None = None) -> argparse.Namespace:
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
    arguments = parser.parse_args(words)
    reason = missing_for(arguments.device) if "memory" in arguments.parts else None
    if reason is not None:
        parser.error(reason)
    return arguments


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    has_roofline = arguments.device == "cuda" and "layers" in arguments.parts
    print(header(has_roofline), flush=True)
    rows = []
    for row in measure(arguments):
        rows.append(row)
        print(markdown(row, has_roofline), flush=True)
        if arguments.json:
            write_json(arguments.json, arguments, rows)


if __name__ == "__main__":
    main()
