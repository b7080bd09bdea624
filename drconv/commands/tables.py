"""Tables made from the records of runs.

    drconv tables                 # records all finished runs below outputs/, then writes the pages
    drconv tables FOLDER ...      # the same with other run folders
    drconv tables check           # changes nothing; fails if a page or a record is not as it should be
    drconv tables check FOLDER    # the same, records compared with the runs and weights in these folders too
    drconv tables --format latex --output FOLDER    # every table as a file: csv, latex or markdown; records nothing

In a checkout python scripts/tables.py is the same. A run's record and its thinned curve go to results/runs; a record
that is there is never replaced. The page is results/README.md of the working folder; in a checkout that of the project,
and the blocks between tables:begin and tables:end of README.md and docs/evidence.md.
"""

import argparse
import sys
from pathlib import Path

from drconv.errors import UserError
from drconv.messages import exit_with
from drconv.paths import CHECKOUT
from drconv.results.check import find_problems
from drconv.results.collect import collect, find_results
from drconv.results.render import render_pages
from drconv.results.sources import load_sources
from drconv.results.tables import make_tables
from drconv.results.write_tables import FORMATS, write_tables


def main() -> int:
    """The command line; returns the exit code."""
    arguments = parse_arguments()
    try:
        return run(arguments)
    except UserError as error:
        exit_with(error)


def run(arguments: argparse.Namespace) -> int:
    """Checks, or records and writes; 1 where there is a problem."""
    if arguments.format:
        for path in write_tables(load_sources(arguments.root), arguments.format, arguments.output):
            print(f"written {path}")
        return 0
    checks = arguments.folders[:1] == ["check"]
    folders = [Path(name) for name in arguments.folders[checks:]] or [arguments.root / "outputs"]
    if checks:
        sources = load_sources(arguments.root)
        problems = find_problems(arguments.root, sources, folders)
        if not problems:
            print(f"no problem in {len(sources.records)} records, {len(sources.costs)} costs and the pages")
    else:
        problems = collect_all(folders, arguments.root / "results" / "runs")
        problems += write_pages(arguments.root)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="'check', folders to search for finished runs, or both")
    parser.add_argument(
        "--root", type=Path, default=CHECKOUT or Path(), help="folder of results/; default: the checkout, else here"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), help="write every table as a file of this format")
    parser.add_argument("--output", type=Path, help="folder of these files")
    arguments = parser.parse_args()
    if (arguments.format is None) != (arguments.output is None):
        parser.error("--format and --output=FOLDER belong together")
    return arguments


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
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"written {path.relative_to(root)}")
    return sources.problems
