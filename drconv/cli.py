"""The command line: Hydra composes, errors become one line. Imports no torch."""

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from drconv.arguments import prepare, quote_text
from drconv.compose import compose_command, typed
from drconv.config import Config
from drconv.console import outlast_readers
from drconv.errors import ConfigError, StoppedError, stopped_by
from drconv.help import HELP, help_text, wants_help
from drconv.messages import exit_with, one_line
from drconv.outcomes import Outcomes, describe_job

NO_EXPERIMENT = "experiment=null"  # the default, which Hydra does not take on a command line


def command(
    function: Callable[[Config], Any],
    config_dir: Path,
    from_run: Callable[[list[str]], Config | None] = lambda arguments: None,
) -> Callable[[], None]:
    """Wraps a function of a validated ``Config`` as a command: ``command(train, CONFIGS)()``.

    The function's return value goes to Hydra's sweeper. In a sweep a failing job is reported and the others run; it
    ends with a table of its jobs, and with exit code 1 where one failed. ``from_run`` may make the configuration from
    the arguments instead of Hydra. ``--help`` begins with the text of the function's module.
    """

    reached: list[bool] = []  # whether Hydra has composed: what it raises before is about the command line

    @hydra.main(version_base="1.3", config_path=str(config_dir), config_name="train")
    def composed(raw: DictConfig) -> Any:
        reached.append(True)
        return run_job(function, raw)

    def run() -> None:
        outlast_readers()
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises the error itself and one_line() words it
        try:
            if wants_help(sys.argv[1:]):
                print(help_of(function, sys.argv[1:], config_dir))
                return
            typed = prepare([part for part in sys.argv[1:] if part != NO_EXPERIMENT], config_dir)
            config = from_run(typed)
            sweeps = bool({"-m", "--multirun"} & set(typed))
            sys.argv[1:] = [quote_text(part, sweeps) for part in typed]
            if config is not None:
                function(config)
            elif sweeps:
                run_sweep(lambda: _compose(composed, reached))
            else:
                _compose(composed, reached)
        except KeyboardInterrupt:
            exit_with(stopped_by("SIGINT", ""))
        except Exception as error:
            exit_with(error)

    return run


def _compose(composed: Callable[[], Any], reached: list[bool]) -> None:
    """Raises a ConfigError for what Hydra itself raises as a plain ValueError, such as ``model=null``."""
    try:
        composed()
    except ValueError as error:
        if reached or one_line(error) is not None:
            raise
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"the command line cannot be read ({reason}); give KEY=VALUE, and for model, data, recipe, runtime, "
            f"logging and experiment the name of a file in configs/"
        ) from None


def run_job(function: Callable[[Config], Any], raw: DictConfig) -> Any:
    """Calls a command's function with a configuration that Hydra composed: the only one, or one of a sweep."""
    hydra_config = HydraConfig.get()
    multirun = hydra_config.mode == RunMode.MULTIRUN
    if multirun and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "-m under torchrun would give every rank its own sweep; use runtime.devices=N without torchrun"
        )
    sys.argv[1:] = list(hydra_config.overrides.task)  # one job of a sweep, as its record names it
    try:
        with describe_job(int(hydra_config.job.num) if multirun else 0, sys.argv[1:]) as outcome:
            config = typed(raw)
            outcome.begin(config)
            outcome.value = function(config)
            return outcome.value
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        if not multirun or isinstance(error, StoppedError):
            exit_with(error)  # at once: Hydra would go on with the next job of a sweep
        print(f"error: {line}", file=sys.stderr, flush=True)
        raise


def run_sweep(composed: Callable[[], None]) -> None:
    """Runs Hydra's multirun, and shows its jobs in a table however it ends."""
    given = dict(argument.partition("=")[::2] for argument in sys.argv[1:])
    with Outcomes(Path(given.get("outputs", Config.outputs).strip("'")) / "multirun") as outcomes:
        try:
            composed()
        except Exception as error:
            if one_line(error) not in outcomes.reasons:  # else the job has said it
                raise
        finally:
            outcomes.show()
        if outcomes.reasons:
            sys.exit(1)


def help_of(function: Callable[..., Any], arguments: list[str], config_dir: Path) -> str:
    """The help of a command, with the values of the configuration that the other arguments compose, if they do."""
    others = [argument for argument in arguments if argument not in HELP]
    try:
        config = compose_command(prepare(others, config_dir), config_dir, check=False) if others else None
    except Exception:  # the help is for those whose command does not compose yet
        config = None
    return help_text(inspect.getdoc(inspect.getmodule(function)) or "", config_dir, config)
