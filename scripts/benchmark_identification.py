"""Rank-1 at MegaFace's full size beside the bare matrix product and faiss; pictures from RecordIO beside folders.

    python scripts/benchmark_identification.py rank                   # 3,530 probes, 1,000,000 distractors, 128 numbers
    python scripts/benchmark_identification.py records                # needs nothing: pictures are drawn and packed

The sides take turns, so that a busy machine slows all of them alike; medians of CPU time and of wall time. faiss is
used where it can be imported (pip install --target DIR faiss-cpu, PYTHONPATH=DIR).
"""

import argparse
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from drconv.tasks.identification.rank import best_scores, normalise  # noqa: E402
from scripts.benchmarking.generated import write_block  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
Sides = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rank", "records"))
    parser.add_argument("--probes", type=int, default=3530)
    parser.add_argument("--distractors", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    if os.environ.get("OPENBLAS_NUM_THREADS") != str(options.threads):  # NumPy reads it when it is imported
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.threads)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(options.threads)
    sides = rank_sides(options) if options.what == "rank" else record_sides()
    text = table(measure(sides, options.rounds))
    print(text)
    if options.write:
        write_block(options.what, f"{text}\n", PAGE)


def table(times: dict[str, list[tuple[float, float]]]) -> str:
    lines = ["| side | wall s | cpu s | cpu ratio |", "| --- | --- | --- | --- |"]
    base = statistics.median(cpu for _, cpu in next(iter(times.values())))
    for name, values in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*values, strict=True))
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {cpu / base:.2f} |")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return "\n".join([*lines, "", f"largest memory of the process: {memory:.2f} GiB"])


def measure(sides: Sides, rounds: int) -> dict[str, list[tuple[float, float]]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return times


def rank_sides(options: argparse.Namespace) -> Sides:
    random = np.random.default_rng(0)
    probes = normalise(random.standard_normal((options.probes, 128), dtype=np.float32))
    distractors = np.empty((options.distractors, 128), np.float32)
    for start in range(0, options.distractors, 50_000):
        part = random.standard_normal((min(50_000, options.distractors - start), 128), dtype=np.float32)
        distractors[start : start + len(part)] = normalise(part)
    columns, buffer = np.ascontiguousarray(probes.T), np.empty((592, options.probes), np.float32)
    total = len(distractors)

    def product() -> None:
        for start in range(0, total, len(buffer)):
            part = distractors[start : start + len(buffer)]
            np.matmul(part, columns, out=buffer[: len(part)])

    def torch_product() -> None:
        for start in range(0, total, len(buffer)):
            part = torch.from_numpy(distractors[start : start + len(buffer)])
            torch.mm(part, torch.from_numpy(columns), out=torch.from_numpy(buffer)[: len(part)])

    sides: Sides = {
        "matrix product (NumPy)": product,
        "rank-1, exact": lambda: best_scores(probes, distractors, [total]),
        "matrix product (PyTorch)": torch_product,
    }
    try:
        import faiss
    except ImportError:
        print("faiss cannot be imported: left out")
        return sides
    faiss.omp_set_num_threads(options.threads)

    def flat() -> None:
        faiss.knn(probes, distractors, 1, metric=faiss.METRIC_INNER_PRODUCT)

    return {**sides, "faiss flat, nearest one": flat}


def record_sides() -> Sides:
    """The same JPEGs, 2,000 of them in random order, read and decoded from a .rec file and from class folders."""
    from PIL import Image

    from drconv.data.source import FileSource, class_folders
    from drconv.tasks.identification.drawn import draw_face
    from drconv.tasks.identification.pack import pack_folders
    from drconv.tasks.identification.pictures import RecordSource

    folder = Path(tempfile.mkdtemp())
    for number in range(2000):
        path = folder / "in" / f"{number // 20:03}" / f"{number % 20:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_face(number // 20, number % 20)).save(path, quality=95)
    pack_folders(folder / "in", folder / "train.rec")
    order = np.random.default_rng(0).permutation(2000).tolist()
    files, records = FileSource(class_folders(folder / "in")), RecordSource(folder / "train.rec")
    return {
        "class folders": lambda: [files.read(position) for position in order],
        "RecordIO": lambda: [records.read(position) for position in order],
    }


if __name__ == "__main__":
    main()
