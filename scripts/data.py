"""Checks and indexes picture folders: ``drconv data`` in a checkout; see drconv/commands/data.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.data import main

if __name__ == "__main__":
    sys.exit(main())
