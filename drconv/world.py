"""How many ranks a run has and who starts them, read from the environment and the configuration. Imports no torch."""

import os

from drconv.config import Config
from drconv.errors import ConfigError

STORE = "DRCONV_STORE"  # the file through which the ranks that ``launch`` starts on one machine meet


def is_started_elsewhere(config: Config) -> bool:
    """Whether torchrun or a scheduler started this process as one of several ranks.

    ``RANK=0 WORLD_SIZE=1`` alone says little: schedulers set it for every job of one process, and
    ``runtime.devices`` then has its say.

    Raises:
        ConfigError: the variables are no numbers, or contradict ``runtime.devices``.
    """
    if "RANK" not in os.environ:
        return False
    ranks = _number("WORLD_SIZE")
    if _number("RANK") >= ranks:
        raise ConfigError(f"RANK={_number('RANK')} is not below WORLD_SIZE={ranks}; unset both or start with torchrun")
    devices = config.runtime.devices
    if ranks > 1 and devices not in (1, ranks, int(os.environ.get("LOCAL_WORLD_SIZE", ranks))):
        raise ConfigError(
            f"the environment says WORLD_SIZE={ranks} and the command runtime.devices={devices}: under torchrun leave "
            f"runtime.devices out, elsewhere unset RANK and WORLD_SIZE"
        )
    return ranks > 1 or devices == 1


def num_ranks(config: Config) -> int:
    """The number of ranks over all machines; raises as ``is_started_elsewhere``."""
    return _number("WORLD_SIZE") if is_started_elsewhere(config) else config.runtime.devices


def _number(name: str) -> int:
    text = os.environ.get(name, "1" if name == "WORLD_SIZE" else "")
    if not text.isdecimal() or int(text) > 2**20:
        raise ConfigError(f"{name}={text} in the environment is no number of a rank; unset it or start with torchrun")
    return int(text)
