"""Can a layer find regions that are known? Trains layers to imitate one whose regions and filters were planted.

    python scripts/planted.py                                  # one layer: all forms, 4, 8 and 16 regions, three seeds
    python scripts/planted.py --depth 3 --regions 8            # a network of three such layers with batch norms
    python scripts/planted.py --forms printed --seeds 0        # a quick look

Needs no data; a fit takes seconds on one core. Fits go to results/planted/layer.json or network.json as they finish and
are not done again while they are there: the same command continues. `python scripts/tables.py` makes the tables.
"""

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from drconv.files import replace_file  # noqa: E402
from drconv.planted.fit import LINEAR, Setting, run  # noqa: E402
from drconv.planted.forms import FORMS, RIVALS  # noqa: E402
from drconv.results import provenance  # noqa: E402

WITHOUT_REGIONS = (LINEAR, *RIVALS)
DIGITS = 5


def main() -> int:
    options = parse_options()
    torch.set_num_threads(1)
    path = options.out or ROOT / "results" / "planted" / f"{'layer' if options.depth == 1 else 'network'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text()) if path.exists() else {"fits": []}
    about = circumstances()
    for key in wanted(options):
        if key in [identify(fit) for fit in content["fits"]]:
            continue
        form, depth, regions, steps, lr, seed = key
        started = time.perf_counter()
        found = run(form, Setting(depth=depth, regions=regions, steps=steps, lr=lr), seed)
        names = {"form": form, "depth": depth, "regions": regions, "steps": steps, "lr": lr, "seed": seed}
        fit = names | rounded(found) | {"seconds": round(time.perf_counter() - started, 1), **about}
        content["fits"].append(fit)
        replace_file(path, json.dumps(content, indent=1) + "\n")
        print("  ".join(f"{name} {value}" for name, value in (names | rounded(found)).items()), flush=True)
    return 0


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=(*FORMS, LINEAR), default=[*FORMS, LINEAR], metavar="FORM")
    parser.add_argument("--regions", nargs="+", type=int, default=[4, 8, 16], help="of the student")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--depth", type=int, default=1, help="planted layers; more than one have batch norms between")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--out", type=Path, help="JSON file to add to, in place of that in results/planted")
    return parser.parse_args()


def wanted(options: argparse.Namespace) -> list[tuple[Any, ...]]:
    """What identifies each fit; a form without regions is done once for each seed."""
    keys = []
    for form in options.forms:
        regions = options.regions[:1] if form in WITHOUT_REGIONS else options.regions
        keys += [(form, options.depth, m, options.steps, options.lr, seed) for m in regions for seed in options.seeds]
    return keys


def identify(fit: dict[str, Any]) -> tuple[Any, ...]:
    regions = fit["regions"]
    return fit["form"], fit["depth"], regions, fit["steps"], fit["lr"], fit["seed"]


def rounded(found: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [round(item, DIGITS) for item in value] if isinstance(value, list) else round(value, DIGITS)
        for name, value in found.items()
    }


def circumstances() -> dict[str, Any]:
    """Code, versions, hardware and date of a fit, kept short: there are many."""
    versions = provenance.versions()
    return {
        "code": provenance.code(),
        "versions": {name: versions[name] for name in ("python", "torch")},
        "hardware": provenance.cpu_name(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


if __name__ == "__main__":
    sys.exit(main())
