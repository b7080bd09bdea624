"""What is typed after a command, before Hydra reads it: its keys are looked up, its paths quoted. Imports no torch."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from drconv.errors import ConfigError
from drconv.messages import choices_of, schema_keys
from drconv.migrations import migrate_override

PATHS = ("data.root", "weights", "backbone", "outputs", "run")  # their values are taken as they are typed
OTHERS = ("hydra", "schema", "local", "task.options")  # Hydra's own, a user's file, and what a task from outside checks


def prepare(arguments: Iterable[str], configs: Path) -> list[str]:
    """The arguments with today's keys, ``glob(...)`` as a list of choices, and ``~`` in paths replaced.

    Raises:
        ConfigError: an unknown key, with those near to it; a pattern that matches nothing.
    """
    prepared = [expand_home(expand_glob(migrate_override(argument), configs)) for argument in arguments]
    check_keys(prepared, configs)
    return prepared


def check_keys(arguments: Iterable[str], configs: Path) -> None:
    """Raises a ConfigError for the first ``key=value`` whose key is neither in the schema nor a group of files."""
    groups = [path.name for path in configs.iterdir() if path.is_dir()]
    known = sorted({*groups, *schema_keys()})
    for argument in arguments:
        key, sign, _ = argument.partition("=")
        if not sign or key.startswith(("-", "+", "~")):
            continue
        name = key.partition("@")[0]
        if name not in known and not name.startswith(OTHERS):
            raise ConfigError(f"the key {key} is not known; near: {', '.join(near_keys(name, known)) or 'none'}")


def near_keys(name: str, known: Iterable[str]) -> list[str]:
    """Keys spelled like one, and those that end like it: ``lr`` is near ``recipe.optimizer.lr``."""
    known = list(known)
    last = name.rpartition(".")[2]
    same_end = [key for key in known if key.endswith(f".{last}")]
    return list(dict.fromkeys([*difflib.get_close_matches(name, known, n=3, cutoff=0.6), *same_end]))[:5]


def expand_home(argument: str) -> str:
    """``data.root=~/pictures`` as a shell would write it, which sees no path there."""
    key, _, value = argument.partition("=")
    return f"{key}={Path(value).expanduser()}" if key in PATHS and value.startswith("~") else argument


def quote_path(argument: str) -> str:
    """A path with characters that Hydra's grammar does not take (``=``, brackets), quoted for it."""
    key, sign, value = argument.partition("=")
    if key not in PATHS or not sign or value[:1] in ("'", '"'):
        return argument
    try:
        OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{key}={value}"


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
