"""Injects faults and counts what became of them.

    python -m tests.faults --count 500                         # all kinds in turn, on a small classification
    python -m tests.faults --count 50 --task detection         # or identification
    python -m tests.faults --count 5 --kinds 'kill -9' 'deleted lock' -- model=... data=... recipe.steps=20

Prints a table in Markdown; ``--log FILE`` keeps a line of JSON for each fault, over any number of calls.
"""

import argparse
import importlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from random import Random

from tests.faults.compare import Outcome, differences, read_outcome
from tests.faults.kinds import FINISHED, KINDS, Trial
from tests.faults.process import ROOT, Training
from tests.faults.runs import COMMON, RUNS

MODULES = [
    *("drconv.commands.train", "drconv.commands.networks", "models", "models.shufflenetv2", "timm", "torchvision"),
    *("PIL.Image", "safetensors.torch", "hydra", "torch.onnx", "torch.utils.data", "torch.optim.swa_utils"),
    *("torch.nn.parallel", "numpy.typing", "antlr4", "torch.utils.flop_counter", "drconv.nn.kernels.cpu"),
    *("drconv.tasks.classification", "drconv.tasks.identification", "drconv.tasks.detection"),
    *("drconv.engine.run", "drconv.engine.trainer", "drconv.engine.dry_run"),
]
RESTARTS = 4  # after a fault, until the run is finished


def main() -> int:
    """The number of faults that lost something."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--task", choices=RUNS, default="classification")
    parser.add_argument("--log", type=Path, help="file for a line of JSON a fault")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("overrides", nargs="*", help="after --: the run, in place of the small one")
    arguments = parser.parse_args()
    load_everything()
    random, end = Random(arguments.seed), time.monotonic() + arguments.seconds
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in arguments.kinds}
    folder = tempfile.mkdtemp(prefix="faults-")  # removed here, and not by whoever is forked and ends
    try:
        run = arguments.overrides or [*RUNS[arguments.task](Path(folder, "data")), *COMMON]
        references: dict[tuple[str, ...], tuple[Outcome, float]] = {}
        for number in range(arguments.count):
            kind = arguments.kinds[number % len(arguments.kinds)]
            if time.monotonic() > end:
                break
            command = [*run, *KINDS[kind].needs, f"outputs={folder}"]
            key = tuple(need for need in KINDS[kind].needs if "devices" in need)
            if key not in references:
                references[key] = undisturbed(command, Path(folder, f"whole{len(references)}"))
            reference, duration = references[key]
            place = Path(folder, str(number))
            trial = Trial([*command, f"run={place}"], place, duration, Random(random.random()))
            finding = disturbed(kind, trial, reference)
            counts[kind][finding.partition(":")[0]] += 1
            print(f"{number} {kind}: {finding}", file=sys.stderr, flush=True)
            if arguments.log:
                with arguments.log.open("a") as file:
                    file.write(json.dumps({"kind": kind, "finding": finding}) + "\n")
            for path in Path(folder).glob(f"{number}*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(counts))
    return sum(count["LOST"] for count in counts.values())


def load_everything() -> None:
    """Imports what a training uses, so that the forked ones need not; nothing is computed in this process."""
    sys.path.insert(0, str(ROOT))
    for module in MODULES:
        importlib.import_module(module)


def undisturbed(command: list[str], folder: Path) -> tuple[Outcome, float]:
    """What the run leaves, and the seconds that it takes."""
    started = time.monotonic()
    training = Training([*command, f"run={folder}"], folder.with_suffix(".txt"))
    if training.wait() != FINISHED:
        raise SystemExit(f"the undisturbed run fails: {training.text()[-2000:]}")
    return read_outcome(folder), time.monotonic() - started


def disturbed(kind: str, trial: Trial, reference: Outcome) -> str:
    """Injects a fault, starts the same command until it is finished, and compares."""
    try:
        KINDS[kind].inject(trial)
        for _ in range(RESTARTS):
            training = trial.start()
            if training.wait() == FINISHED:
                break
        else:
            return f"LOST: the same command does not finish: {training.last_line()}"
    except (AssertionError, TimeoutError) as error:
        return f"LOST: {error}"
    finally:
        left = [pid for training in trial.trainings for pid in training.left_behind()]
        for training in trial.trainings:
            training.signal_session(signal.SIGKILL)
    if left:
        return f"LOST: processes left: {left}"
    if found := "; ".join(differences(reference, trial.folder)):
        return f"LOST: {found}"
    if read_outcome(trial.folder).damaged_at:
        return "equal, gap in the log said in the record"
    return "equal"


def table(counts: dict[str, Counter[str]]) -> str:
    """Markdown, a line a kind."""
    rows = ["| fault | injected | equal | equal, log's gap recorded | lost |", "| --- | ---: | ---: | ---: | ---: |"]
    totals: Counter[str] = sum(counts.values(), Counter())
    for kind, count in [*counts.items(), ("all", totals)]:
        gap = count["equal, gap in the log said in the record"]
        rows.append(f"| {kind} | {count.total()} | {count['equal']} | {gap} | {count['LOST']} |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(bool(main()))
