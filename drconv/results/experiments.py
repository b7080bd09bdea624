"""The experiment files: which rows there are, and how a record's configuration differs from its file's."""

from dataclasses import asdict
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from drconv.identity import select_binding

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

    def describe(self, id: str) -> dict[str, Any]:
        """The ``experiment`` section of a file; empty where there is no file."""
        if id not in self.ids:
            return {}
        return yaml.load((self._folder / f"{id}.yaml").read_text(), LOADER).get("experiment", {})

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


@cache
def compose_experiment(configs: Path, id: str) -> dict[str, Any]:
    """What an experiment file decides, as ``train.py experiment=ID`` composes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import drconv.compose  # noqa: F401, registers the schema

    with initialize_config_dir(str(configs), version_base="1.3"):
        config: Any = OmegaConf.to_object(compose("train", overrides=[f"experiment={id}"]))
    return select_binding(asdict(config))


def _as_override(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(map(_as_override, value)) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
