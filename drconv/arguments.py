"""What is typed after a command, before Hydra reads it: its keys are looked up, its texts quoted. Imports no torch."""

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
        ConfigError: an unknown key, with those near to it; a list of files; a pattern that matches nothing.
    """
    prepared = [expand_home(expand_glob(migrate_override(argument), configs)) for argument in arguments]
    check_keys(prepared, configs)
    return prepared


def check_keys(arguments: Iterable[str], configs: Path) -> None:
    """Raises a ConfigError for the first ``key=value`` whose key is neither in the schema nor a group of files, and for
    a list of files: Hydra would take them all, the last one winning.
    """
    groups = [path.name for path in configs.iterdir() if path.is_dir()]
    known = sorted({*groups, *schema_keys()})
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign or key.startswith(("-", "+", "~")):
            continue
        name = key.partition("@")[0]
        if name in groups and value.startswith("["):
            several = value.strip("[] ")
            raise ConfigError(f"{argument}: {key} takes one file of configs/{name}/; a sweep is -m {key}={several}")
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


def quote_text(argument: str, sweep: bool) -> str:
    """A text that Hydra's grammar does not take as it is (``=``, brackets, é), quoted for it; paths always are texts.

    Args:
        argument: ``key=value``; others stay as they are, and so do values that were quoted by hand.
        sweep: whether a comma parts the values of several jobs; else it belongs to a path.
    """
    key, sign, value = argument.partition("=")
    if not sign or value[:1] in ("'", '"') or key not in schema_keys(of=(str, str | None)):
        return argument
    try:
        parsed = OverridesParser.create().parse_override(argument)
        is_several = parsed.is_sweep_override()
        is_text = sweep if is_several else isinstance(parsed.value(), str | None)
    except HydraException:
        return f"{key}={_quoted(value)}"
    return argument if is_text or key not in PATHS else f"{key}={_quoted(value)}"


def _quoted(value: str) -> str:
    """Hydra reads a backslash as itself, but before a quote and at the end."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"


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
