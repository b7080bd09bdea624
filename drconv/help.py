"""``--help``: every key of the schema with its comment, its value and its choices. Imports no torch.

The text of a key is the comment behind its field in ``drconv/config.py``, and stands nowhere else.
"""

import ast
import inspect
import io
import shutil
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from drconv import config as schema
from drconv.config import Config
from drconv.config_check import CHOICES
from drconv.messages import choices_of

HELP = ("-h", "--help")
COLUMN = 34  # at which texts begin
GROUPS = {
    "model": "the network",
    "data": "the data, where the recipe's are not meant",
    "recipe": "length, batch and optimiser, with the data that they are for",
    "experiment": "a row of a table: network, recipe and what is claimed",
}


def wants_help(arguments: Iterable[str]) -> bool:
    """Whether the arguments ask for help."""
    return any(argument in HELP for argument in arguments)


def help_text(description: str, configs: Path, config: Config | None) -> str:
    """The whole help.

    Args:
        description: of the command, with its usage.
        configs: the folder of the choices.
        config: whose values are shown; None for the defaults of the schema.
    """
    width = min(shutil.get_terminal_size((110, 24)).columns, 120)
    values = Config() if config is None else config
    shown = "the schema's; files of configs/ change them" if config is None else "those of this command"
    lines = [description.strip(), "", "Files to choose from (GROUP=FILE), below configs/:"]
    for group, text in GROUPS.items():
        lines += ["", f"{group}=  {text}", *_choices(configs / group, width)]
    lines += ["", f"Keys (KEY=VALUE, as many as you like); the values are {shown}:"]
    lines += _section(values, Config, "", width)
    several = "Several values, separated by commas, with -m before them: one run for each, a table at the end."
    return "\n".join([*lines, "", several])


def _choices(folder: Path, width: int) -> Iterator[str]:
    by_table: dict[str, list[str]] = {}
    for choice in choices_of(folder):
        table, _, name = choice.rpartition("/")
        by_table.setdefault(table, []).append(name)
    for table, names in by_table.items():
        text = f"{table}/ " if table else ""
        yield from textwrap.wrap(
            text + " ".join(names),
            width,
            initial_indent="    ",
            subsequent_indent="        " if table else "    ",
            break_on_hyphens=False,
        )


def _section(values: Any, kind: type, prefix: str, width: int) -> Iterator[str]:
    """The keys of a section, then the sections inside it."""
    nested = []
    comments = comments_of_schema()[kind.__name__]
    hints = get_type_hints(kind)
    for item in fields(kind):
        if is_dataclass(hints[item.name]):
            nested.append(item.name)
            continue
        key, value = prefix + item.name, getattr(values, item.name)
        yield from _entry(f"{key}={as_typed(value)}", _text(key, comments.get(item.name, "")), width)
    for name in nested:
        section = hints[name]
        yield ""
        yield from textwrap.wrap(f"{prefix}{name}.  {_first_sentence(section)}".rstrip(), width)
        yield from _section(getattr(values, name), section, f"{prefix}{name}.", width)


def _text(key: str, comment: str) -> str:
    choices = [choice or "null" for choice in CHOICES.get(key, ())]
    missing = [choice for choice in choices if choice not in comment]
    return f"{comment} ({' | '.join(choices)})".strip() if missing else comment


def _entry(head: str, text: str, width: int) -> list[str]:
    head = f"  {head}"
    lines = textwrap.wrap(text, max(width - COLUMN, 30)) or [""]
    if len(head) >= COLUMN:
        lines.insert(0, "")
    first, *rest = lines
    return [f"{head:{COLUMN}}{first}".rstrip(), *(" " * COLUMN + line for line in rest)]


def as_typed(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(as_typed, value))}]"
    if is_dataclass(value):
        parts = ((item.name, getattr(value, item.name)) for item in fields(value))
        return "{" + ",".join(f"{name}:{as_typed(part)}" for name, part in parts) + "}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _first_sentence(kind: type) -> str:
    text = " ".join((kind.__doc__ or "").split())
    return "" if text.startswith(f"{kind.__name__}(") else text  # the signature that dataclass puts there


@cache
def comments_of_schema() -> dict[str, dict[str, str]]:
    """Of every class of the schema the comments of its fields: on their lines, and alone on those below."""
    source = inspect.getsource(schema)
    comments: dict[int, str] = {}
    alone = set()  # lines that hold nothing but a comment
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = {}
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    lines = list(range(item.lineno, (item.end_lineno or item.lineno) + 1))
                    while lines[-1] + 1 in alone:
                        lines.append(lines[-1] + 1)
                    found[node.name][item.target.id] = " ".join(comments[n] for n in lines if n in comments)
    return found
