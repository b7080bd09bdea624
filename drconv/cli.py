"""The command line: Hydra composes, errors become one line. Imports no torch."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from drconv.compose import typed
from drconv.config import Config
from drconv.errors import ConfigError, StoppedError
from drconv.messages import choices_of, exit_with, one_line
from drconv.migrations import migrate_override

NO_EXPERIMENT = "experiment=null"  # the default, which Hydra does not take on a command line


def command(
    function: Callable[[Config], Any],
    config_dir: Path,
    from_run: Callable[[list[str]], Config | None] = lambda arguments: None,
) -> Callable[[], None]:
    """Wraps a function of a validated ``Config`` as a command: ``command(train, CONFIGS)()``.

    The function's return value goes to Hydra's sweeper. In a sweep a failing job is reported and the others run.
    ``from_run`` may make the configuration from the arguments instead of Hydra.
    """

    reached: list[bool] = []  # whether Hydra has composed: what it raises before is about the command line

    @hydra.main(version_base="1.3", config_path=str(config_dir), config_name="train")
    def composed(raw: DictConfig) -> Any:
        reached.append(True)
        hydra_config = HydraConfig.get()
        multirun = hydra_config.mode == RunMode.MULTIRUN
        if multirun and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError(
                "-m under torchrun would give every rank its own sweep; use runtime.devices=N without torchrun"
            )
        sys.argv[1:] = list(hydra_config.overrides.task)  # one job of a sweep, as its record names it
        try:
            return function(typed(raw))
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            if not multirun or isinstance(error, StoppedError):
                exit_with(error)  # at once: Hydra would go on with the next job of a sweep
            print(f"error: {line}", file=sys.stderr, flush=True)
            raise

    def run() -> None:
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises the error itself and one_line() words it
        try:
            given = [argument for argument in sys.argv[1:] if argument != NO_EXPERIMENT]
            sys.argv[1:] = [expand_glob(migrate_override(argument), config_dir) for argument in given]
            config = from_run(sys.argv[1:])
            if config is None:
                _compose(composed, reached)
            else:
                function(config)
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


def expand_glob(argument: str, config_dir: Path) -> str:
    """``experiment=glob(table1/*)`` as a list of choices: Hydra's own glob does not look into nested groups.

    Raises:
        ConfigError: nothing matches.
    """
    found = re.fullmatch(r"(\w+)=glob\(([^,()]+)\)", argument)
    if not found:
        return argument
    group, pattern = found.groups()
    folder = config_dir / group
    choices = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.glob(f"{pattern}.yaml"))
    if not choices:
        raise ConfigError(f"{argument} matches nothing in {folder.name}/; {group}s are {', '.join(choices_of(folder))}")
    return f"{group}={','.join(choices)}"
