"""Makes one HTML page of tables, curves, masks and records: ``drconv report``; see drconv/commands/report.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
