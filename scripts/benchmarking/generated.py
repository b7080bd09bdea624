"""The parts of docs/performance_gpu.md that scripts write: what stands between two markers."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance_gpu.md"


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}:begin -->\n)(.*?)(<!-- {name}:end -->)", re.DOTALL)


def read_block(name: str) -> str:
    """The generated part ``name`` as it stands.

    Raises:
        ValueError: the page has no such markers.
    """
    found = _pattern(name).search(PAGE.read_text())
    if found is None:
        raise ValueError(f"{PAGE.name} has no part <!-- {name}:begin --> to <!-- {name}:end -->; put the two lines in")
    return found[2]


def write_block(name: str, text: str) -> None:
    """Replaces the generated part ``name``.

    Raises:
        ValueError: the page has no such markers.
    """
    read_block(name)
    PAGE.write_text(_pattern(name).sub(lambda found: found[1] + text + found[3], PAGE.read_text()))
    print(f"written {PAGE.name}, part {name}")
