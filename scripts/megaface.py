"""Rank-1 among MegaFace's distractors: ``drconv megaface`` in a checkout; see drconv/commands/megaface.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.megaface import main

if __name__ == "__main__":
    sys.exit(main())
