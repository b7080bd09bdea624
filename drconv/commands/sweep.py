"""Trains many runs on a pool of devices: finished ones are skipped, stopped ones go on, failed ones do not end it.

    drconv sweep 'experiment=glob(table1/*)' seed=0,1,2 data.root=/data/imagenet
    drconv sweep 'experiment=glob(small/imagenette/*)' seed=0,1 data.root=... slots=2

What is typed is that of drconv train -m, and each run has the folder that it would have there: the same command goes on
after any end. A job takes as many GPUs as its runtime.devices says; on a machine without any, slots= says how many run
at once. With runtime.dry_run=true the table has hours and memory of each, from measured steps, and their sum.

    gpus=0,1,2,3     the GPUs of the pool; default: all that this process sees
    slots=N          jobs at once where there is no GPU; default: 1
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from drconv.arguments import prepare, quote_text
from drconv.compose import compose_command
from drconv.config import Config
from drconv.errors import ConfigError, stopped_by
from drconv.files import read_json
from drconv.help import wants_help
from drconv.messages import exit_with, one_line
from drconv.outcomes import FAILED, FOLDER, NOT_STARTED, SKIPPED, STOPPED, Outcome, name_jobs, read_outcomes, table
from drconv.paths import CONFIGS, PACKAGE
from drconv.pool import Job, Pool
from drconv.tasks.registry import headline_name

OPTIONS = ("gpus", "slots")
OUTPUT = "output.log"  # in a run's folder


def main() -> None:
    """The command line."""
    try:
        if wants_help(sys.argv[1:]) or not sys.argv[1:]:
            print((__doc__ or "").strip(), "\n\nAll other keys are those of training: drconv train --help")
            return
        failed = sweep(sys.argv[1:])
    except Exception as error:
        exit_with(error)
    sys.exit(1 if failed else 0)


def sweep(arguments: Sequence[str]) -> bool:
    """Runs all jobs and prints their table; returns whether one failed.

    Raises:
        StoppedError: a signal came; the jobs have saved.
    """
    options = dict(part.split("=", 1) for part in arguments if part.partition("=")[0] in OPTIONS)
    typed = [part for part in arguments if part.partition("=")[0] not in OPTIONS and part not in ("-m", "--multirun")]
    devices, variable = choose_devices(options)
    configs = compose_jobs(expand([quote_text(argument, sweep=True) for argument in prepare(typed, CONFIGS)]))
    outcomes = {number: planned(number, overrides, config) for number, (overrides, config) in enumerate(configs)}
    total = len(outcomes)
    with tempfile.TemporaryDirectory(prefix="drconv-sweep-") as place:
        jobs = [
            make_job(number, *configs[number], place=Path(place), devices=devices, has_gpus=variable is not None)
            for number, outcome in outcomes.items()
            if outcome.state != SKIPPED
        ]

        def started(job: Job, used: list[str]) -> None:
            where = f" on GPU {','.join(used)}" if variable else ""
            print(f"[{job.number + 1}/{total}] starts{where}: {names[job.number]}; output: {job.output}", flush=True)

        def ended(job: Job, code: int, seconds: float) -> None:
            outcome = outcomes[job.number] = found_outcome(job, code, seconds, outcomes[job.number])
            print(f"[{job.number + 1}/{total}] {outcome.state}: {outcome.text}", flush=True)

        names = name_jobs([overrides for overrides, _ in configs])
        with Pool(devices, variable, started, ended) as pool:
            pool.run(jobs)
    print("\n" + "\n".join(table(outcomes.values())), flush=True)
    if pool.received is not None:
        raise stopped_by(pool.received.name, "; the same command continues")
    return any(outcome.state == FAILED for outcome in outcomes.values())


def choose_devices(options: dict[str, str]) -> tuple[list[str], str | None]:
    """The places of the pool, and the variable that names a job's GPUs (None without any)."""
    if "slots" in options:
        if not options["slots"].isdecimal() or not 1 <= int(options["slots"]) <= 1024:
            raise ConfigError(f"slots={options['slots']} must be a number of jobs, at least 1")
        if "gpus" in options:
            raise ConfigError("give either gpus= or slots=")
        return [str(slot) for slot in range(int(options["slots"]))], None
    given = options.get("gpus", os.environ.get("CUDA_VISIBLE_DEVICES"))
    gpus = [part for part in given.split(",") if part] if given is not None else list(_list_gpus())
    if len(set(gpus)) != len(gpus) or (not gpus and "gpus" in options):
        raise ConfigError(f"gpus={given} must be a list of different GPUs, such as 0,1,2,3")
    return (gpus, "CUDA_VISIBLE_DEVICES") if gpus else (["0"], None)


def _list_gpus() -> Iterator[str]:
    """Numbers of this machine's GPUs, by NVIDIA's tool, which is there with its driver."""
    if shutil.which("nvidia-smi") is None:
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    for number, _ in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU ")):
        yield str(number)


def expand(arguments: Sequence[str]) -> list[list[str]]:
    """The overrides of every job: all combinations of the values that are separated by commas, the last key fastest."""
    lists = []
    for override in OverridesParser.create().parse_overrides(list(arguments)):
        key = override.get_key_element()
        values = override.sweep_string_iterator() if override.is_sweep_override() else None
        lists.append([str(override.input_line)] if values is None else [f"{key}={value}" for value in values])
    return [list(job) for job in itertools.product(*lists)]


def compose_jobs(jobs: Sequence[list[str]]) -> list[tuple[list[str], Config]]:
    """All configurations, so that a mistake in the last job is found before the first one starts.

    Jobs with the folder of one before them (rows that are one run) are left out.

    Raises:
        ConfigError: a job does not compose; the message names it.
    """
    found: dict[str, tuple[list[str], Config]] = {}
    for overrides in jobs:
        try:
            config = compose_command(overrides, CONFIGS)
        except Exception as error:
            if (line := one_line(error)) is None:
                raise
            raise ConfigError(f"{' '.join(overrides)}: {line}") from None
        found.setdefault(str(config.run), (overrides, config))
    return list(found.values())


def planned(number: int, overrides: list[str], config: Config) -> Outcome:
    """The outcome of a job before it starts; that of a finished run is its record's."""
    outcome = Outcome(number, overrides, state=NOT_STARTED)
    result = Path(str(config.run)) / "result.json"
    if result.exists() and not config.overwrite:
        outcome.begin(replace(config, runtime=replace(config.runtime, dry_run=False)))
        name = headline_name(config.task, config.experiment.metric)
        outcome.value = float(read_json(result)["metrics"].get(name) or float("nan"))
        outcome.finish()
    return outcome


def make_job(
    number: int, overrides: list[str], config: Config, *, place: Path, devices: Sequence[str], has_gpus: bool
) -> Job:
    """The process of a run.

    Raises:
        ConfigError: it needs more devices than there are.
    """
    needs = config.runtime.devices if has_gpus else 1
    if needs > len(devices):
        raise ConfigError(f"runtime.devices={needs} and the pool has {len(devices)} GPUs; name more with gpus=")
    own = list(overrides)
    if config.runtime.threads is None:  # the jobs share the cores
        at_once = len(devices) // needs
        own.append(f"runtime.threads={max(1, (os.cpu_count() or 1) // (at_once * config.runtime.devices))}")
    folder = place / str(number)
    folder.mkdir()
    environment = {FOLDER: str(folder), "PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *_python_path()])}
    output = Path(str(config.run)) / OUTPUT if not config.runtime.dry_run else folder / OUTPUT
    return Job(number, [sys.executable, "-m", "drconv", "train", *own], needs, output, environment)


def _python_path() -> list[str]:
    return [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]


def found_outcome(job: Job, code: int, seconds: float, before: Outcome) -> Outcome:
    """What the job left, else how its process ended and the last that it said."""
    left = read_outcomes(Path(job.environment[FOLDER]))
    if left:
        return replace(left[0], number=job.number, overrides=before.overrides, seconds=seconds)
    lines = [line for line in job.output.read_text(errors="replace").splitlines() if line.strip()]
    end = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    state = STOPPED if code in (130, 143) else FAILED
    return replace(before, state=state, text=f"{end}; {lines[-1] if lines else 'it said nothing'}", seconds=seconds)
