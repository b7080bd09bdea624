"""Tables made from the records of runs.

    python scripts/tables.py                 # records all finished runs below outputs/, then writes the pages
    python scripts/tables.py FOLDER ...      # the same with other run folders
    python scripts/tables.py check           # changes nothing; fails if a page or a record is not as it should be
    python scripts/tables.py check FOLDER    # the same, records compared with the runs and weights in these folders too

A run's record and its thinned curve go to results/runs; a record that is there is never replaced. The pages are
results/README.md, and the blocks between tables:begin and tables:end of README.md and docs/evidence.md.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from drconv.errors import UserError  # noqa: E402
from drconv.results.check import find_problems  # noqa: E402
from drconv.results.collect import collect, find_results  # noqa: E402
from drconv.results.render import render_pages  # noqa: E402
from drconv.results.tables import load_sources, make_tables  # noqa: E402


def main() -> int:
    arguments = parse_arguments()
    checks = arguments.folders[:1] == ["check"]
    folders = [Path(name) for name in arguments.folders[checks:]] or [arguments.root / "outputs"]
    if checks:
        problems = find_problems(arguments.root, load_sources(arguments.root), folders)
    else:
        problems = collect_all(folders, arguments.root / "results" / "runs")
        problems += write_pages(arguments.root)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="'check', folders to search for finished runs, or both")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project's folder")
    return parser.parse_args()


def collect_all(folders: list[Path], runs: Path) -> list[str]:
    """Records every finished run; returns a line for each that was refused."""
    problems = []
    results = find_results(folders)
    if not results:
        print(f"no finished run below {', '.join(map(str, folders))}")
    for result in results:
        try:
            if record := collect(result, runs):
                print(f"recorded {record.path.name}: {record.metric} {record.value:.2f}")
        except UserError as error:
            problems.append(str(error))
    return problems


def write_pages(root: Path) -> list[str]:
    """Writes the pages that changed; returns a line for each file in results/runs that is no record."""
    sources = load_sources(root)
    for path, text in render_pages(root, make_tables(sources)).items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"written {path.relative_to(root)}")
    return sources.problems


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
