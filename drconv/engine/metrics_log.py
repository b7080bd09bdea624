"""``metrics.jsonl``: one JSON object a line, the record of a run's curves."""

import json
from pathlib import Path
from typing import Any

from drconv.files import replace_file, without_infinities


class MetricsLog:
    """Appends entries; a resumed run first drops those that it will write again.

    Args:
        path: the file.
        start_step: of the saved state.
        evaluates_first: whether the evaluation of that step comes again: the state after the last step is saved before
            its evaluation, and a state can be saved inside one.
    """

    def __init__(self, path: Path, start_step: int, evaluates_first: bool) -> None:
        self.path = path
        if not path.exists():
            return
        entries = [line for line in path.read_text().splitlines() if _step_of(line) <= start_step]
        if evaluates_first:
            entries = [line for line in entries if _step_of(line) < start_step or json.loads(line)["split"] == "train"]
        replace_file(path, "".join(f"{line}\n" for line in entries))

    def append(self, entry: dict[str, Any]) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(without_infinities(entry), allow_nan=False) + "\n")


def _step_of(line: str) -> float:
    """A line cut short by a crash counts as later than any step, so that it is dropped."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")
