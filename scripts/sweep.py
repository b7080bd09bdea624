"""Many runs on a pool of devices: ``drconv sweep``; see drconv/commands/sweep.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.sweep import main

if __name__ == "__main__":
    sys.exit(main())
