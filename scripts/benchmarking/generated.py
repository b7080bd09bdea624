"""The parts of the pages on speed that scripts write: what stands between two markers."""

import re
from pathlib import Path

from drconv.files import replace_file

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance_gpu.md"


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- {name}:begin -->\n)(.*?)(<!-- {name}:end -->)", re.DOTALL)


def read_block(name: str, page: Path = PAGE) -> str:
    """The generated part ``name`` of a page as it stands.

    Raises:
        ValueError: the page has no such markers.
    """
    found = _pattern(name).search(page.read_text())
    if found is None:
        raise ValueError(f"{page.name} has no part <!-- {name}:begin --> to <!-- {name}:end -->; put the two lines in")
    return found[2]


def write_block(name: str, text: str, page: Path = PAGE) -> None:
    """Replaces the generated part ``name`` of a page.

    Raises:
        ValueError: the page has no such markers.
    """
    read_block(name, page)
    replace_file(page, _pattern(name).sub(lambda found: found[1] + text + found[3], page.read_text()))
    print(f"written {page.name}, part {name}")
