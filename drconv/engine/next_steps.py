"""The last lines of a run: how it stands beside the paper's row, and what can be done with it next."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import yaml

from drconv.config import Config
from drconv.outcomes import is_sweep
from drconv.paths import CONFIGS, RESULTS
from drconv.results.experiments import Experiments

HEADLINES = ("top1", "rank1", "box")  # keys of results/paper.yaml
INPUTS = {"identification": "probe=FOLDER --out embeddings.npz", "detection": "images=FOLDER --out found"}


def next_lines(config: Config, value: float) -> Iterator[str]:
    """Lines for the terminal; a job of a sweep says nothing of what comes next, its table does."""
    id = config.experiment.id or ""
    printed = None if config.experiment.metric else printed_number(id)
    if printed is not None:
        difference = value - printed
        yield f"the paper prints {printed:g} for {id}; this is {difference:+.2f}, {_reading(config, difference)}"
    if is_sweep():
        return
    run = f"run={shlex.quote(str(config.run))}"
    yield "next:"
    yield f"  {_program('eval')} {run}"
    if config.task.name in ("classification", *INPUTS):
        yield f"  {_program('predict')} {run} {INPUTS.get(config.task.name, 'images=FOLDER')}"
    if config.model.conv == "drconv" and config.task.name == "classification":
        yield f"  {_program('masks')} {run} --out masks.png"


def printed_number(id: str) -> float | None:
    """What the paper prints for an experiment, in its table's headline; None where it prints nothing."""
    table, _, row = id.partition("/")
    printed = yaml.safe_load((RESULTS / "paper.yaml").read_text()).get(table, {}).get(row, {})
    value = next((printed[key] for key in HEADLINES if key in printed), None)
    return value[0] if isinstance(value, list) else value


def _reading(config: Config, difference: float) -> str:
    """Whether the difference means anything, and how large it may be."""
    changes = Experiments(CONFIGS).differences(asdict(config), str(config.experiment.id))
    if changes:
        return f"with other settings than that row's ({' '.join(changes[:3])}{' ...' if len(changes) > 3 else ''})"
    tolerance = config.experiment.tolerance
    if tolerance is None:
        return "without a tolerance"
    return f"{'within' if abs(difference) <= tolerance else 'outside'} the tolerance of {tolerance:g}"


def _program(command: str) -> str:
    """A command as the one that runs here was typed: of the installed package, or a file of a checkout."""
    if Path(sys.argv[0]).name.startswith("drconv"):
        return f"drconv {command}"
    return "python eval.py" if command == "eval" else f"python scripts/{command}.py"
