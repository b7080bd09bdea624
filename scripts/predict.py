"""Nearest faces and embeddings by a trained network: ``drconv predict``; see drconv/commands/predict.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
