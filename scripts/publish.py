"""Packs a finished run into a folder to give away: ``drconv publish`` in a checkout; see drconv/commands/publish.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.publish import main

if __name__ == "__main__":
    sys.exit(main())
