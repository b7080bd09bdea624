"""Draws accuracy against cost, the paper's Figure 4: see drconv/commands/tradeoff.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.tradeoff import main

if __name__ == "__main__":
    sys.exit(main())
