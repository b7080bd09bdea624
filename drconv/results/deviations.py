"""The decisions of ``docs/deviations.md``, which records name by id, with their words. Imports no torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from drconv.paths import CHECKOUT

ROW = re.compile(r"^\| (D\d+) \| ([^|]+) \| ([^|]+) \|", re.M)
LINK = re.compile(r"\[([^\]]+)\]\([^)]+\)")


@dataclass(frozen=True)
class Deviation:
    """What the paper leaves open, and what was chosen here; in Markdown without links."""

    question: str
    choice: str

    @property
    def sentence(self) -> str:
        return f"{self.question[0].upper()}{self.question[1:]}: {self.choice}."


def read_deviations(root: Path | None = CHECKOUT) -> dict[str, Deviation]:
    """By id; none where the package is installed without its pages."""
    path = None if root is None else root / "docs" / "deviations.md"
    if path is None or not path.is_file():
        return {}
    return {id: Deviation(_plain(question), _plain(choice)) for id, question, choice in ROW.findall(path.read_text())}


def _plain(cell: str) -> str:
    return LINK.sub(r"\1", cell).replace("**", "").strip()
