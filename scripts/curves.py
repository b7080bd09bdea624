"""Draws curves of runs: ``drconv curves`` in a checkout; see drconv/commands/curves.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.curves import main

if __name__ == "__main__":
    sys.exit(main())
