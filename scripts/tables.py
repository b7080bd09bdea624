"""Records finished runs and makes the tables: ``drconv tables`` in a checkout; see drconv/commands/tables.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.tables import main

if __name__ == "__main__":
    sys.exit(main())
