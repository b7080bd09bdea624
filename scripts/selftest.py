"""Holds every kernel of this machine's devices against the reference; see ``drconv/nn/selftest.py``.

python scripts/selftest.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.nn.selftest import main

if __name__ == "__main__":
    sys.exit(main())
