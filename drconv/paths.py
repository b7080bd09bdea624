"""Where configurations and printed numbers lie: at the top of a checkout, or inside the installed package."""

from pathlib import Path

PACKAGE = Path(__file__).parent
# The project's folder in a checkout (an editable installation included), None where the package is installed.
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "configs" / "train.yaml").is_file() else None
CONFIGS = PACKAGE / "configs" if CHECKOUT is None else CHECKOUT / "configs"
RESULTS = PACKAGE / "printed" if CHECKOUT is None else CHECKOUT / "results"  # paper.yaml, comparisons.yaml, costs.yaml
