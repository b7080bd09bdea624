"""Draws the regions that a trained network chooses: ``drconv masks`` in a checkout; see drconv/commands/masks.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.masks import main

if __name__ == "__main__":
    sys.exit(main())
