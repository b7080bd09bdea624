"""All runs of a folder with their state: ``drconv status``; see drconv/commands/status.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.status import main

if __name__ == "__main__":
    sys.exit(main())
