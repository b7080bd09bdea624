"""Lists all runs below a folder: state, step, speed, loss, last metric, time left.

drconv status                     below outputs/
drconv status /runs --watch       again every 5 seconds, until Ctrl-C
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from drconv.console import outlast_readers
from drconv.errors import printable
from drconv.run_status import FAILED, FINISHED, RUNNING, STALLED, STOPPED, RunStatus, find_runs, read_status

ORDER = (RUNNING, STALLED, FAILED, STOPPED, FINISHED)
HEADER = ("state", "step", "images/s", "loss", "metric", "left", "run")
CLEAR = "\033[H\033[J"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; exit code 1 where there is no run."""
    options = parse_options(arguments)
    outlast_readers()
    try:
        while True:
            runs = [read_status(folder) for place in options.folders for folder in find_runs(place)]
            print((CLEAR if options.watch else "") + "\n".join(table(runs)), flush=True)
            if not options.watch:
                return 0 if runs else 1
            time.sleep(options.watch)
    except KeyboardInterrupt:
        return 130


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("outputs")], metavar="FOLDER")
    parser.add_argument("--watch", nargs="?", type=float, const=5.0, metavar="SECONDS", help="list again and again")
    return parser.parse_args(arguments)


def table(runs: Sequence[RunStatus]) -> Iterator[str]:
    """Lines: how many of each state, then a row for each run, those that compute first."""
    if not runs:
        yield "no runs here; name the folder that holds them"
        return
    ordered = sorted(runs, key=lambda run: (ORDER.index(run.state), str(run.folder)))
    rows = [HEADER, *(row(run) for run in ordered)]
    widths = [max(len(line[column]) for line in rows) for column in range(len(HEADER))]
    counts = {state: sum(run.state == state for run in runs) for state in ORDER}
    yield "runs: " + ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    for line, run in zip(rows, (None, *ordered), strict=True):
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        if run is not None and run.reason:
            yield f"          {printable(run.reason)}"


def row(run: RunStatus) -> tuple[str, ...]:
    """The cells of a run; of one that is stalled the time since it wrote something, in place of the time left."""
    left = "" if run.seconds_left is None else str(timedelta(seconds=round(run.seconds_left)))
    if run.state == STALLED:
        left = f"silent for {timedelta(seconds=round(run.quiet_s))}"
    return (
        run.state,
        f"{run.step}/{run.num_steps or '?'}",
        "" if run.speed is None or run.state != RUNNING else f"{run.speed:.0f}",
        "" if run.loss is None else f"{run.loss:.4g}",
        run.metric,
        left,
        printable(str(run.folder)),
    )
