"""``python -m drconv train ...`` is ``drconv train ...``."""

import sys

from drconv.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
