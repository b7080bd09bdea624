"""Counts multiply-adds and parameters: ``drconv cost`` in a checkout; see drconv/commands/cost.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.cost import main

if __name__ == "__main__":
    sys.exit(main())
