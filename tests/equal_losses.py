"""The same losses on 1, 2 and 4 ranks, for each task: ``python -m tests.equal_losses --steps 50`` prints a table.

Four micro-batches of a step are shared out over the ranks, so that every batch norm sees the same pictures. In double
precision and with small learning rates, since training amplifies the rounding of sums in another order: at 0.1 fifty
times a step at the start, in plain networks too. A DRConv besides chooses: a difference of 1e-8 moved positions to
another region after ten steps at 0.001, and the losses parted by 1e-4 at once; hence its still smaller rate.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PIECES = 4
COMMON = [
    *("recipe.epochs=null", "recipe.schedule.warmup_steps=5", "logging.every=1", "logging.wandb=disabled"),
    *("runtime.workers=0", "runtime.threads=1", "runtime.device=cpu", "runtime.precision=fp32"),
]
PLAIN, DRCONV = "recipe.optimizer.lr=0.001", "recipe.optimizer.lr=0.00001"
DETECTOR = [
    *("model.detector.masks=true", "model.width=0.25", "model.detector.rois=16", "recipe.batch_size=8"),
    *("data.coco.sizes=[96]", "data.coco.max_size=128"),
]
RUNS = {
    "classification": ["model=shufflenetv2_0.25x", "recipe.batch_size=32", PLAIN],
    "classification, DRConv": ["model=drconv_shufflenetv2_0.25x", "recipe.batch_size=32", DRCONV],
    "identification": ["model=mobilefacenet", "recipe.batch_size=8", PLAIN],
    "identification, DRConv": ["model=drconv_mobilefacenet", "recipe.batch_size=8", DRCONV],
    "detection": ["model=detnas_300m_fpn", *DETECTOR, PLAIN],
    "detection, DRConv": ["model=drconv_detnas_300m_fpn_8r", *DETECTOR, DRCONV],
}


def main() -> int:
    """The number of runs whose losses differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.equal_losses", description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN")
    arguments = parser.parse_args()
    print("| training | 2 ranks and 1, largest difference of a loss | 4 ranks and 1 | first loss | last loss |")
    print("| --- | ---: | ---: | ---: | ---: |")
    failed = 0
    for name in arguments.runs:
        with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
            alone, two, four = (losses(name, ranks, arguments.steps, Path(folder)) for ranks in (1, 2, 4))
        differences = [max(abs(a - b) for a, b in zip(alone, other, strict=True)) for other in (two, four)]
        failed += not max(differences) < arguments.tolerance
        print(
            f"| {name} | {differences[0]:.1e} | {differences[1]:.1e} | {alone[0]:.4f} | {alone[-1]:.4f} |", flush=True
        )
    return failed


def losses(name: str, ranks: int, steps: int, folder: Path) -> list[float]:
    """Of every step, as the log has them."""
    run = folder / f"{ranks}"
    overrides = [
        *(*RUNS[name], *COMMON, f"recipe.steps={steps}", f"runtime.accumulate={PIECES // ranks}", f"run={run}"),
        *(f"logging.eval_every={steps}", f"logging.checkpoint_every={steps}"),
    ]
    command = [sys.executable, "-c", "from tests.equal_losses import train; train()", *overrides]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29_500 + os.getpid() % 400), "WORLD_SIZE": str(ranks)}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **meeting, "RANK": str(rank), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"the training of {name} on {ranks} ranks fails")
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if entry["split"] == "train"]


def train() -> None:
    """``train.py`` in double precision, where the code says float too."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    from drconv.commands.train import main

    main()


if __name__ == "__main__":
    sys.exit(main())
