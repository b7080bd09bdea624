"""Seconds from SIGTERM to the end of a job, with its state saved: ``python -m tests.stop_times``, on a quiet machine.

Every process of the job gets the signal, as a cluster sends it, while the job trains, evaluates, embeds faces or builds
the kernel; on 1, 2 and 4 ranks. Prints a table.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMMON = [
    *("recipe.epochs=null", "recipe.steps=500", "recipe.schedule.warmup_steps=5", "logging.wandb=disabled"),
    *("logging.every=1", "logging.checkpoint_every=100", "runtime.threads=1", "runtime.device=cpu"),
]
DIGITS = ["model=drconv_shufflenetv2_0.5x", "recipe.batch_size=32"]
FACES = ["model=drconv_mobilefacenet", "recipe.batch_size=16", "recipe.eval_batch_size=16"]
EVALUATION = ["logging.eval_every=1", "recipe.eval_batch_size=4"]
PHASES = {  # what the job does, and the words of its output after which the signal comes
    "training": ([*DIGITS, "logging.eval_every=100"], "step 3/"),
    "evaluating": ([*DIGITS, *EVALUATION], "step 1/"),
    "embedding faces": ([*FACES, "logging.eval_every=1"], "step 1/"),
    "building the kernel": (DIGITS, "building the C++ kernel"),
}
DELAY_S = 1.5  # after those words
LIMIT_S = 10


def main() -> int:
    """The number of jobs that took longer than the limit, or did not say that they stopped."""
    parser = argparse.ArgumentParser(prog="python -m tests.stop_times", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=list(PHASES), metavar="PHASE")
    arguments = parser.parse_args()
    print("| signal while | ranks | seconds to the end | exit code | last line |\n| --- | ---: | ---: | ---: | --- |")
    failed = 0
    for phase in arguments.phases:
        for ranks in arguments.ranks:
            with tempfile.TemporaryDirectory(prefix="stop-") as folder:
                seconds, code, line = stop(phase, ranks, Path(folder))
            failed += not (seconds < LIMIT_S and code == 128 + signal.SIGTERM)
            print(f"| {phase} | {ranks} | {seconds:.1f} | {code} | {line} |", flush=True)
    return failed


def stop(phase: str, ranks: int, folder: Path) -> tuple[float, int, str]:
    """Seconds, exit code and last line of a job that gets the signal in the phase."""
    overrides, words = PHASES[phase]
    environment = dict(os.environ)
    if phase == "building the kernel":
        environment["TORCH_EXTENSIONS_DIR"] = str(folder / "kernels")
    output = folder / "output.txt"
    with output.open("w") as file:
        job = subprocess.Popen(
            [sys.executable, "train.py", *overrides, *COMMON, f"runtime.devices={ranks}", f"run={folder / 'run'}"],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while words not in output.read_text():
        if job.poll() is not None:
            raise SystemExit(f"the job ended before the signal: {output.read_text()[-1000:]}")
        time.sleep(0.05)
    time.sleep(DELAY_S)
    os.killpg(job.pid, signal.SIGTERM)
    sent = time.monotonic()
    code = job.wait()
    seconds = time.monotonic() - sent
    return seconds, code, output.read_text().strip().splitlines()[-1].replace(str(folder / "run"), "RUN")


if __name__ == "__main__":
    sys.exit(main())
