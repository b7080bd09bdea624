"""The command line: Hydra composes, the rules are checked, errors become one line. Imports no torch."""

import hashlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drconv.config import Config
from drconv.config_check import validate
from drconv.errors import ConfigError, RunFolderError, StoppedError
from drconv.messages import choices_of, exit_with, one_line
from drconv.results.identity import FREE_KEYS, FREE_RUNTIME
from drconv.stored_yaml import read_stored_yaml

ConfigStore.instance().store("schema", Config)

# Overrides that are not part of a run's name: the seed has its own place, the others do not change what it computes.
UNNAMED = ("seed", *FREE_KEYS, *(f"runtime.{key}" for key in FREE_RUNTIME))
MAX_NAME = 150  # characters of the overrides in a run's name; file systems allow 255


def command(
    function: Callable[[Config], Any],
    config_dir: Path,
    from_run: Callable[[list[str]], Config | None] = lambda arguments: None,
) -> Callable[[], None]:
    """Wraps a function of a validated ``Config`` as a command: ``command(train, CONFIGS)()``.

    The function's return value goes to Hydra's sweeper. In a sweep a failing job is reported and the others run.
    ``from_run`` may make the configuration from the arguments instead of Hydra.
    """

    @hydra.main(version_base="1.3", config_path=str(config_dir), config_name="train")
    def composed(raw: DictConfig) -> Any:
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
            sys.argv[1:] = [expand_glob(argument, config_dir) for argument in sys.argv[1:]]
            config = from_run(sys.argv[1:])
            if config is None:
                composed()
            else:
                function(config)
        except Exception as error:
            exit_with(error)

    return run


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


def typed(raw: DictConfig) -> Config:
    """The checked dataclass of a composed configuration, with the run's folder filled in."""
    config = OmegaConf.to_object(raw)
    assert isinstance(config, Config)
    if HydraConfig.initialized():
        for override in HydraConfig.get().overrides.task:
            if override.startswith(("+", "~")):
                raise ConfigError(f"{override}: keys cannot be added or removed; write {override.lstrip('+~')}")
    if config.run is None:
        config.run = str(Path(config.outputs) / run_name(config))
    validate(config)
    return config


def config_of_run(arguments: list[str]) -> Config | None:
    """The configuration stored in the folder that ``run=`` names, with the other arguments as overrides.

    Returns:
        None where the arguments name no run, or a model of their own.
    """
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "run" not in given or "model" in given or "experiment" in given:
        return None
    stored = load_config(Path(given["run"]))
    if "weights" not in given:
        stored.weights = None  # those that the run started from
    overrides = OmegaConf.from_dotlist([argument for argument in arguments if not argument.startswith("run=")])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(stored), overrides))
    except OmegaConfBaseException as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(f"beside run= give single keys such as data.root= or runtime.devices=; {reason}") from None
    assert isinstance(config, Config)
    config.run = given["run"]
    validate(config)
    return config


def load_config(folder: Path) -> Config:
    """The configuration a run was made with.

    Raises:
        RunFolderError: there is none, or it is not of this version's schema.
    """
    stored = folder / "config.yaml"
    if not stored.exists():
        raise RunFolderError(f"run={folder} holds no config.yaml; give the folder that training printed")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.create(read_stored_yaml(stored)))
        config = OmegaConf.to_object(merged)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise RunFolderError(f"{stored} does not fit this version: {reason}") from None
    assert isinstance(config, Config)
    return config


def run_name(config: Config) -> str:
    """A stable name: the experiment or the chosen model, data and recipe, then what was overridden, then the seed."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    named = ["experiment"]
    if choices.get("experiment"):
        name = str(choices["experiment"])
    else:
        named += ["model", "data", "recipe"]
        name = f"{choices['model']}/{config.data.name}"
        if choices["recipe"] != choices["data"]:
            name += f"-{choices['recipe']}"
    changed = []
    for override in hydra_config.overrides.task:
        key, _, value = override.partition("=")
        if key in named or key in UNNAMED or key.startswith(tuple(f"{unnamed}." for unnamed in UNNAMED)):
            continue
        changed.append(f"{key}={value}".replace("/", "_"))
    own = ",".join(sorted(changed))
    if len(own) > MAX_NAME:
        own = f"{own[:MAX_NAME]}~{hashlib.sha256(own.encode()).hexdigest()[:8]}"
    return "/".join([name, ",".join([*([own] if own else []), f"seed{config.seed}"])])


def as_yaml(config: Config) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
