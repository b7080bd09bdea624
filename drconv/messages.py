"""Errors as a user reads them: one line that says what was found, what is allowed and which key to change."""

import difflib
import errno
import re
import sys
from collections.abc import Container
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from omegaconf.errors import OmegaConfBaseException

from drconv import config
from drconv.config import Config
from drconv.errors import StoppedError, UserError, of_lost_loader, printable
from drconv.paths import CONFIGS

DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM),
    *(errno.EROFS, errno.ENOENT, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO),
)


def exit_with(error: Exception) -> NoReturn:
    """Prints a user's error as one line and leaves with code 1, or 143 or 130 after a stop; others keep their trace."""
    line = one_line(error)
    if line is None:
        raise error
    sys.stdout.flush()
    print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(error.exit_code if isinstance(error, StoppedError) else 1)


def one_line(error: BaseException) -> str | None:
    """The message for an error that a user can mend, or None for a defect of the program."""
    line = _worded(error)
    return None if line is None else printable(line)


def _worded(error: BaseException) -> str | None:
    error = of_lost_loader(error) or error
    if isinstance(error, UserError) or (isinstance(error, FileNotFoundError) and error.errno is None):
        return str(error)  # a FileNotFoundError without a number is one of ours, with the expected tree
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing_choice(str(error.missing_cfg_file), list(error.options or []))
    if isinstance(error, ConfigCompositionException | OmegaConfBaseException):
        return _of_command_line(str(error)) or _wrong_key(error)
    if isinstance(error, HydraException):
        return _of_command_line(str(error)) or " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"{error.strerror}: {error.filename or 'while writing'}; check outputs, run and data.root"
    return None


def choices_of(folder: Path) -> list[str]:
    """All choices of a group, nested ones included."""
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def schema_keys(schema: type = Config, prefix: str = "", of: Container[Any] | None = None) -> list[str]:
    """All dotted keys of the schema, or those of some types."""
    keys = []
    for item in fields(schema):
        if of is None or item.type in of:
            keys.append(prefix + item.name)
        if isinstance(item.type, type) and is_dataclass(item.type):
            keys += schema_keys(item.type, f"{prefix}{item.name}.", of)
    return keys


def _missing_choice(path: str, found: list[str]) -> str:
    """The choices near to one that is missing, or all; those of Hydra's own groups are the ones that it found."""
    group, _, name = path.removesuffix(".yaml").partition("/")
    if group == "hydra":
        own, _, name = name.partition("/")
        plugin = f"; is the package hydra-{name}-{own} installed?" if own in ("launcher", "sweeper") else ""
        return f"hydra/{own}={name} is not known; there are {', '.join(sorted(found)) or 'none'}{plugin}"
    options = choices_of(CONFIGS / group)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
    hint = f"near: {', '.join(near)}" if near else f"there are {', '.join(options)}"
    return f"{group}={name} is not known; {hint}"


def _of_command_line(text: str) -> str | None:
    """What Hydra says of the command line without a way out, with one; None for anything else."""
    if found := re.search(r"Ambiguous value for argument '(.*)'", text):
        return f"{found[1]}: several values are a sweep, which needs -m; give one value, or a list as [..,..]"
    if found := re.search(r"Multiple values for (\w+)\. To override a value use 'override \w+: (.+?)'", text):
        return f"+{found[1]}={found[2]}: there is one already; write {found[1]}={found[2]}"
    return None


def _of_entry(key: str, first: str) -> str | None:
    """An unknown key inside a list of sections, such as ``recipe.optimizer.groups``."""
    found = re.search(r"Key '(\w+)' not in '(\w+)'", first)
    if found is None or key not in schema_keys():
        return None
    names = [item.name for item in fields(getattr(config, found[2]))]
    near = difflib.get_close_matches(found[1], names, n=1)
    hint = f"near: {near[0]}; " if near else ""
    return f"{key}: {found[1]} is not known; {hint}there are {', '.join(names)}"


def _wrong_key(error: Exception) -> str:
    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text = "\n".join(str(link) for link in chain)
    if found := re.search(r"[Yy]ou must specify '(\w+)'", text):
        return f"{found[1]}= is missing; for example {found[1]}=drconv_shufflenetv2_0.5x"
    cause = chain[-1]
    key = getattr(cause, "full_key", None) or ""
    if found := re.search(r"Could not override '([\w./@]+)'", text):
        key = found[1]
    first = " ".join(str(cause).split("\n")[0].split())
    if entry := _of_entry(key, first):
        return entry
    if "not in struct" in text or "not in 'Config'" in text or "not in '" in first or "No match" in text:
        near = difflib.get_close_matches(key, schema_keys(), n=3, cutoff=0.6)
        return f"the key {key or first} is not known; near: {', '.join(near) or 'none'}"
    return f"{key}: {first}" if key else first
