"""Configurations composed, checked, stored and read again. Imports no torch."""

import hashlib
from dataclasses import asdict
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from drconv.arguments import PATHS, expand_home, quote_text
from drconv.config import Config
from drconv.config_check import is_experiment, validate
from drconv.errors import ConfigError, RunFolderError
from drconv.identity import FREE_KEYS, FREE_RUNTIME
from drconv.migrations import SCHEMA, migrate_config, migrate_override, schema_of
from drconv.stored_yaml import read_stored_yaml

ConfigStore.instance().store("schema", Config)

# Overrides that are not part of a run's name: the seed has its own place, the others do not change what it computes.
UNNAMED = ("seed", *FREE_KEYS, *(f"runtime.{key}" for key in FREE_RUNTIME))
MAX_NAME = 150  # characters of the overrides in a run's name; file systems allow 255


def typed(raw: DictConfig) -> Config:
    """The checked dataclass of a composed configuration, with the run's folder filled in."""
    config = OmegaConf.to_object(raw)
    assert isinstance(config, Config)
    if HydraConfig.initialized():
        for override in HydraConfig.get().overrides.task:
            if override.startswith(("+", "~")):
                raise ConfigError(f"{override}: keys cannot be added or removed; write {override.lstrip('+~')}")
    name_experiment(config)
    if config.run is None:
        config.run = str(Path(config.outputs) / run_name(config))
    validate(config)
    return config


def compose_command(overrides: list[str], configs: Path, check: bool = True) -> Config:
    """The configuration of ``train OVERRIDES``, composed outside of Hydra's own start.

    Args:
        overrides: as ``drconv.arguments.prepare`` gives them; one job's, no sweep's.
        configs: the folder of the choices.
        check: whether the rules across keys are checked and the run's folder is filled in.

    Raises:
        ConfigError, HydraException: it does not compose.
    """
    with initialize_config_dir(str(configs.resolve()), version_base="1.3"):
        raw = compose("train", [quote_text(override, sweep=False) for override in overrides], return_hydra_config=True)
    HydraConfig.instance().set_config(raw)  # asked for the choices, and for what was typed
    try:
        with open_dict(raw):
            del raw["hydra"]
        if check:
            return typed(raw)
        config = OmegaConf.to_object(raw)
        assert isinstance(config, Config)
        return config
    finally:
        HydraConfig.instance().cfg = None


def name_experiment(config: Config, chosen: str | None = None) -> None:
    """Fills ``experiment.id``; a row that is ``same_as`` another becomes that one, so that it is not trained twice.

    Args:
        config: composed; changed in place.
        chosen: the choice of ``experiment=``; by default the one that Hydra's command line was given.
    """
    experiment = config.experiment
    if chosen is None and HydraConfig.initialized():
        chosen = HydraConfig.get().runtime.choices.get("experiment")
    if experiment.same_as is not None:
        if not is_experiment(experiment.same_as):
            raise ConfigError(f"experiment.same_as={experiment.same_as} is no experiment; leave the key out")
        _check_same(experiment.same_as)
        print(f"note: the same run as experiment={experiment.same_as}, which is trained; its record counts for both")
        chosen = experiment.same_as
        experiment.same_as = None
    experiment.id = experiment.id or chosen


def _check_same(row: str) -> None:
    """A row of the tables is trained in the place of the run only where the files say so, and with its own network.

    Raises:
        ConfigError: ``experiment.same_as`` or another network was typed.
    """
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    for key in ("experiment.same_as", "model"):
        if any(override.lstrip("+").startswith(f"{key}=") for override in overrides):
            raise ConfigError(
                f"{key}= beside experiment.same_as={row} would give that row the result of another run; type "
                f"experiment={row} for it, or leave experiment out"
            )


def config_of_run(arguments: list[str]) -> Config | None:
    """The configuration stored in the folder that ``run=`` names, with the other arguments as overrides.

    Returns:
        None where the arguments name no run, or a model of their own.
    """
    arguments = [expand_home(argument) for argument in arguments]
    given = dict(argument.partition("=")[::2] for argument in arguments)
    if "run" not in given or "model" in given or "experiment" in given:
        return None
    stored = load_config(Path(given["run"]))
    if "weights" not in given:
        stored.weights = None  # those that the run started from
    module = stored.task.module
    if module is not None and "task.module" not in given:
        raise ConfigError(
            f"run={given['run']} names a module that would be imported, and a stored configuration starts no code: "
            f"add task.module={module} if you trust it"
        )
    others = [migrate_override(argument) for argument in arguments if not argument.startswith("run=")]
    paths = [argument for argument in others if argument.startswith(tuple(f"{path}=" for path in PATHS))]
    overrides = OmegaConf.from_dotlist([argument for argument in others if argument not in paths])
    for key, _, value in (path.partition("=") for path in paths):  # as typed, which YAML might read as something else
        OmegaConf.update(overrides, key, None if value == "null" else value)
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
        content = read_stored_yaml(stored)
        schema = schema_of(content)
        current = migrate_config({key: value for key, value in content.items() if key != "schema"}, schema)
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), current))
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
    if config.experiment.id:
        name = config.experiment.id
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
    """The resolved configuration as YAML, with the number of its schema."""
    return OmegaConf.to_yaml(OmegaConf.create({"schema": SCHEMA, **asdict(config)}))
