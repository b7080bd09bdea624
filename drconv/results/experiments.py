"""The experiment files: which rows there are, and how a record's configuration differs from its file's."""

from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from drconv.identity import flatten, select_binding

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times as fast

_MISSING = object()  # unequal to every value


class Experiments:
    """The files below ``configs/experiment``. Hydra is loaded for the first comparison and not before.

    Args:
        configs: the folder of all configurations.
    """

    def __init__(self, configs: Path) -> None:
        self.configs = configs
        self._folder = configs / "experiment"

    @cached_property
    def ids(self) -> list[str]:
        """All experiments, in the order of their names."""
        paths = self._folder.rglob("*.yaml")
        return sorted(str(path.relative_to(self._folder).with_suffix("")) for path in paths)

    def run_of(self, id: str) -> str:
        """The experiment whose runs stand for this one: itself, or the one that it is ``same_as``."""
        return self._section(id).get("same_as", id)

    def describe(self, id: str) -> dict[str, Any]:
        """The ``experiment`` section of the file whose run it is; empty where there is no file."""
        return self._section(self.run_of(id))

    def model(self, id: str) -> dict[str, Any]:
        """What the files decide of the network: the chosen file of ``configs/model`` and the experiment's changes.

        Options that stand in neither are at the defaults of the schema and left out.
        """
        content = self._read(self.run_of(id))
        choices = [entry for entry in content.get("defaults", []) if isinstance(entry, dict)]
        name = next(entry["override /model"] for entry in choices if "override /model" in entry)
        return self.model_file(name) | flatten(content.get("model", {}))

    def model_file(self, name: str) -> dict[str, Any]:
        """A file of ``configs/model``; empty where there is none."""
        path = self.configs / "model" / f"{name}.yaml"
        return flatten(_load(path)) if path.is_file() else {}

    @cache  # noqa: B019, a handful of objects for a whole command
    def _read(self, id: str) -> dict[str, Any]:
        return _load(self._folder / f"{id}.yaml") if id in self.ids else {}

    def _section(self, id: str) -> dict[str, Any]:
        return self._read(id).get("experiment", {})

    def differences(self, config: dict[str, Any], id: str) -> list[str]:
        """What a recorded configuration has otherwise than its experiment file, as ``key=value``.

        The seed and the ``experiment`` section do not count, nor do the options of a convolution that the model does
        not use: their defaults may have changed since. A key that came after the record was made does not either: it
        has the default, which keeps what was before.
        """
        expected = compose_experiment(self.configs.resolve(), id)
        unused = [f"model.{conv}." for conv in ("drconv", "condconv") if conv != config["model"]["conv"]]
        recorded = select_binding(config)
        return [
            f"{key}={_as_override(value)}"
            for key, value in sorted(recorded.items())
            if key != "seed" and not key.startswith(("experiment.", *unused)) and expected.get(key, _MISSING) != value
        ]


def _load(path: Path) -> dict[str, Any]:
    return yaml.load(path.read_text(), LOADER) or {}


@cache
def compose_experiment(configs: Path, id: str) -> dict[str, Any]:
    """The keys that an experiment file decides, as ``train.py experiment=ID`` composes them."""
    return select_binding(asdict(compose_config(configs, id)))


def compose_config(configs: Path, id: str) -> Any:
    """The ``Config`` of ``train.py experiment=ID``, not checked."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import drconv.compose  # noqa: F401, registers the schema

    with initialize_config_dir(str(configs), version_base="1.3"):
        return OmegaConf.to_object(compose("train", overrides=[f"experiment={id}"]))


def _as_override(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_as_override, value)) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
