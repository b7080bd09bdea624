"""Writes a trained network as a file: ``drconv export`` in a checkout; see drconv/commands/export.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
