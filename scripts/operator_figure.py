"""Draws the figure of docs/operator.md: a picture, the regions an untrained guide cuts it into, the filter of each.

python scripts/operator_figure.py
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from drconv.figures.operator_mask import draw_figure  # noqa: E402
from drconv.files import replace_file  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "figures" / "operator_mask.svg", help="SVG to write"
    )
    arguments = parser.parse_args()
    replace_file(arguments.out, draw_figure())
    print(f"written {arguments.out}")


if __name__ == "__main__":
    main()
