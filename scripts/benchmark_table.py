"""The opening table of docs/performance.md: DRConv's time over the plain network's in every runtime.

    python scripts/benchmark_table.py                             # measures what is not measured yet, writes the page
    python scripts/benchmark_table.py --networks mobilenetv2 --columns onnxruntime --again
    python scripts/benchmark_table.py --write                     # only the page, from results/performance.json

Columns: eager, both networks as trained; fused, both after ``fuse_for_inference``; compiled, both after it and
``torch.compile`` ("compiled, not fused" without it); onnxruntime, both as ``drconv.export.export_onnx`` writes them,
standard operators only; custom, DRConv with our operator for onnxruntime; training, a step at batch 32, and memory,
what such a step adds. So the plain side has its batch norms folded where ours has. The two sides take turns, and a cell
is the median of the rounds' ratios. Cells are kept as they come, so that the command goes on where it was stopped.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from drconv.export import export_onnx  # noqa: E402
from drconv.export.onnx import session_options  # noqa: E402
from drconv.files import replace_file  # noqa: E402
from drconv.nn import fuse_for_inference  # noqa: E402
from scripts.benchmarking.generated import write_block  # noqa: E402
from scripts.benchmarking.memory import peak_memory  # noqa: E402
from scripts.benchmarking.sides import NETWORKS, build, image, inference, training_step  # noqa: E402

STORE = ROOT / "results" / "performance.json"
PAGE = ROOT / "docs" / "performance.md"
SIDES = ("plain", "grouped")
INFERENCE = ("eager", "fused", "compiled", "onnxruntime", "custom")
UNFUSED = "compiled, not fused"  # has a table of its own: is fusion worth it there?
TIMED = (*INFERENCE, UNFUSED)
COLUMNS = (*TIMED, "training", "compiled training", "memory")
BATCHES = (1, 32)
Runs = dict[str, Callable[[], Any]]
Cells = dict[str, dict[str, Any]]


def measure(runs: Runs, seconds: float, clock: Callable[[], float]) -> dict[str, Any]:
    """Milliseconds of both sides and the median ratio, at least five rounds after two that do not count."""
    times: dict[str, list[float]] = {side: [] for side in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["plain"]) < 7:
        for side, run in runs.items():
            begin = clock()
            run()
            times[side].append((clock() - begin) * 1e3)
    kept = {side: values[2:] for side, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(kept["plain"], kept["grouped"], strict=True))
    return {"ratio": ratio, "rounds": len(kept["plain"])} | {k: statistics.median(v) for k, v in kept.items()}


def torch_runs(name: str, column: str, batch: int) -> Runs:
    runs: Runs = {}
    for side in SIDES:
        network = build(name, side, "cpu")
        if column not in ("eager", UNFUSED):
            network = fuse_for_inference(network)
        x = image(name, batch, 224, "cpu")
        if not column.startswith("compiled"):
            runs[side] = inference(network, side, x)
            continue
        compiled = torch.compile(network)
        runs[side] = lambda compiled=compiled, x=x: _without_gradients(compiled, x)
        runs[side]()
    return runs


def _without_gradients(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


def training_runs(name: str, column: str) -> Runs:
    runs: Runs = {}
    for side in SIDES:
        network = build(name, side, "cpu")
        network = torch.compile(network) if column.startswith("compiled") else network  # type: ignore[assignment]
        runs[side] = training_step(network, side, image(name, 32, 224, "cpu"))
        runs[side]()
    return runs


def onnx_runs(name: str, column: str, batch: int, threads: int, folder: Path) -> Runs:
    import onnxruntime

    runs: Runs = {}
    for side in SIDES:
        is_custom = column == "custom" and side == "grouped"
        path = folder / f"{name}_{side}{'_custom' if is_custom else ''}.onnx"
        if not path.exists():
            network = build(name, side, "cpu").to(memory_format=torch.contiguous_format)
            export_onnx(network, path, image(name, 2, 224, "cpu").contiguous(), custom_operator=is_custom)
        options = session_options(is_custom)
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {"image": image(name, batch, 224, "cpu").contiguous().numpy()}
        runs[side] = lambda session=session, feed=feed: session.run(None, feed)
    return runs


def cells(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Key and measurement of every cell that is asked for."""
    for name in arguments.networks:
        for threads in arguments.threads:
            for column in arguments.columns:
                if column == "memory":
                    if threads == arguments.threads[0]:
                        yield f"{name}, memory", partial(_memory, name)
                    continue
                for batch in BATCHES if column in TIMED else (32,):
                    key = f"{name}, {column}, batch {batch}, threads {threads}"
                    yield key, partial(_time, name, column, batch, threads, arguments, folder)


def _memory(name: str) -> dict[str, Any]:
    peaks = {side: statistics.median(peak_memory(name, side, "cpu", 1) for _ in range(3)) for side in SIDES}
    return {"ratio": peaks["grouped"] / peaks["plain"]} | peaks


def _time(name: str, column: str, batch: int, threads: int, arguments: Any, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(threads)
    torch.compiler.reset()
    if column in ("onnxruntime", "custom"):
        runs = onnx_runs(name, column, batch, threads, folder)
    elif column in TIMED:
        runs = torch_runs(name, column, batch)
    else:
        runs = training_runs(name, column)
    is_cpu = arguments.clock == "cpu" and threads == 1
    result = measure(runs, arguments.seconds, time.thread_time if is_cpu else time.perf_counter)
    return result | {"clock": "cpu" if is_cpu else "wall", "load": os.getloadavg()[0]}


def table(store: dict[str, Any]) -> str:
    """The page's opening table: a cell is "one thread / two threads"."""
    found: Cells = store["cells"]
    places = [(column, batch) for column in INFERENCE for batch in BATCHES]
    places += [("training", 32), ("compiled training", 32)]
    names = [f"{column}, {batch}" if column in INFERENCE else column for column, batch in places] + ["memory"]
    lines = [f"| network | {' | '.join(names)} |", "| --- " * (len(names) + 1) + "|"]
    for name in NETWORKS:
        row = []
        for column, batch in places:
            keys = [f"{name}, {column}, batch {batch}, threads {threads}" for threads in (1, 2)]
            ratios = [f"{found[key]['ratio']:.2f}" if key in found else "-" for key in keys]
            row.append("-" if set(ratios) == {"-"} else " / ".join(ratios))
        memory = found.get(f"{name}, memory")
        row.append(f"{memory['ratio']:.2f}" if memory else "-")
        lines.append(f"| {name} | {' | '.join(row)} |")
    loads = [cell["load"] for cell in found.values() if "load" in cell]
    about = f"{store['processor']}; torch {store['torch']}, onnxruntime {store['onnxruntime']}."
    busy = f" While it was measured, {min(loads):.0f} to {max(loads):.0f} processes wanted to run." if loads else ""
    return "\n".join(lines) + f"\n\n{about}{busy}\n"


def fusion_table(store: dict[str, Any]) -> str:
    """DRConv compiled, with and without ``fuse_for_inference`` before: milliseconds, where both were measured."""
    lines = ["| network | batch | threads | compiled | fused and compiled | fused / not |", "| --- " * 6 + "|"]
    for key, fused in store["cells"].items():
        other = store["cells"].get(key.replace(", compiled, ", f", {UNFUSED}, "))
        if other is None or ", compiled, " not in key or UNFUSED in key:
            continue
        name, _, batch, threads = key.split(", ")
        times = [other["grouped"], fused["grouped"]]
        cells = [name, batch.split()[1], threads.split()[1], *(f"{time:.2f} ms" for time in times)]
        lines.append(f"| {' | '.join(cells)} | {times[1] / times[0]:.2f} |")
    return "\n".join(lines) + "\n"


def about() -> dict[str, Any]:
    import onnxruntime

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = f"{names[0] if names else 'unknown processor'}, {os.cpu_count()} cores"
    processor += f", {torch.backends.cpu.get_cpu_capability()}"
    return {"processor": processor, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--columns", nargs="+", choices=COLUMNS, default=[c for c in COLUMNS if c != "custom"])
    parser.add_argument("--threads", nargs="+", type=int, choices=(1, 2), default=[1, 2])
    parser.add_argument("--seconds", type=float, default=6.0, help="per cell, both sides together")
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu: of one thread, for a busy machine"
    )
    parser.add_argument("--files", type=Path, help="a folder that keeps the ONNX files for the next call")
    parser.add_argument("--again", action="store_true", help="measure cells anew that are there already")
    parser.add_argument("--write", action="store_true", help="measure nothing, write the page")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    store = json.loads(STORE.read_text()) if STORE.exists() else {"cells": {}}
    if not arguments.write:
        store |= about()
        with tempfile.TemporaryDirectory() as folder:
            for key, run in cells(arguments, arguments.files or Path(folder)):
                if key in store["cells"] and not arguments.again:
                    continue
                store["cells"][key] = run()
                print(f"{key}: {store['cells'][key]['ratio']:.2f}", flush=True)
                replace_file(STORE, json.dumps(store, indent=1, sort_keys=True) + "\n")
    write_block("table", table(store), PAGE)
    write_block("fusion", fusion_table(store), PAGE)


if __name__ == "__main__":
    main()
