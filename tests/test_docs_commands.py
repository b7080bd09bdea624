"""Every training and sweep command of the pages composes, and every link between pages leads to a file."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from drconv.arguments import prepare, quote_text
from drconv.compose import compose_command

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TRAINING = r"(?:python (?:train|scripts/sweep)\.py|drconv (?:train|sweep)) "
COMMAND = re.compile(rf"^    (?:\w+=\S+ )*({TRAINING}.*)$|`({TRAINING}[^`]*)`", re.MULTILINE)
OURS = ("-m", "slots=", "gpus=", "--help")  # of the sweep, and of Hydra


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of each command; those with a ``...`` are left out, they are no whole command."""
    for found in COMMAND.finditer(text.replace("\\\n", " ")):
        arguments = shlex.split(found[1] or found[2], comments=True)[2:]
        if "..." not in " ".join(arguments) and arguments != ["--help"]:
            yield arguments


def first_and_last(argument: str) -> list[str]:
    """The first and the last value of a sweep over one key, as ``key=value``; the argument itself if it is none."""
    override = OverridesParser.create().parse_override(argument)
    if not override.is_sweep_override():
        return [argument]
    values = list(override.sweep_string_iterator())
    return [f"{override.get_key_element()}={value}" for value in (values[0], values[-1])]


def compose_all(arguments: list[str]) -> None:
    kept = [argument for argument in arguments if not argument.startswith(OURS)]
    quoted = [quote_text(argument, sweep=True) for argument in prepare(kept, CONFIGS)]
    choices = [first_and_last(argument) for argument in quoted if not argument.startswith("hydra")]
    for end in (0, -1):
        compose_command([several[end] for several in choices], CONFIGS, check=False)
        if all(len(several) == 1 for several in choices):
            break


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_compose(page: Path) -> None:
    for arguments in commands(page.read_text()):
        try:
            compose_all(arguments)
        except Exception as error:
            pytest.fail(f"{page.name}: {' '.join(arguments)}: {error}")


def test_commands_are_found() -> None:
    text = (
        "    A=1 python train.py model=a \\\n      seed=1  # why\n\n`drconv sweep x=1,2`, `python train.py model=...`\n"
    )
    assert list(commands(text)) == [["model=a", "seed=1"], ["x=1,2"]]
    assert len(list(commands((ROOT / "README.md").read_text()))) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_scripts_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)]
    scripts = [ROOT / name for name in re.findall(r"python ((?:scripts|examples)/[\w/]+\.py|train\.py|eval\.py)", text)]
    missing = [str(path) for path in [*links, *scripts] if not path.exists()]
    assert not missing
