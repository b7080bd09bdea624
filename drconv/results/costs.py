"""Multiply-adds and parameters of every row, counted and kept in ``results/costs.yaml``: tables import no torch."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from drconv.results.experiments import LOADER, Experiments

HEADER = """\
# Counted by `python scripts/cost.py --write`; do not edit. No run is needed: the network of each row is built and its
# products are counted for one picture (decision D9). model: hash of what the files decide of the network.
"""
MENDED = "python scripts/cost.py --write counts it"


@dataclass(frozen=True)
class Cost:
    """An entry of the file.

    Attributes:
        model: hash of the network's configuration that was counted.
        input: channels, rows, columns.
        parameters: of the network, shared ones once.
        multiply_adds: true ones for one picture.
        paper_multiply_adds: by the paper's convention.
    """

    model: str
    input: tuple[int, ...]
    parameters: int
    multiply_adds: int
    paper_multiply_adds: int


def counted_rows(experiments: Experiments, paper: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What has a cost: experiments with a run of their own, and the paper's rows that have a model but no experiment.

    Returns:
        For each id what the files decide of its network.
    """
    found = {id: experiments.model(id) for id in experiments.ids if experiments.run_of(id) == id}
    for id in (f"{table}/{row}" for table, rows in paper.items() for row in rows):
        if id not in experiments.ids and (model := experiments.model_file(id.rpartition("/")[2])):
            found[id] = model
    return found


def model_hash(model: dict[str, Any]) -> str:
    """Of what the files decide of a network: dotted keys with values."""
    return hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest()[:12]


def read_costs(path: Path) -> dict[str, Cost]:
    """The file by id; nothing where it is missing."""
    entries = yaml.load(path.read_text(), LOADER) or {} if path.is_file() else {}
    return {id: Cost(**{**entry, "input": tuple(entry["input"])}) for id, entry in entries.items()}


def render_costs(costs: dict[str, Cost]) -> str:
    """The file's text, an entry a line."""
    lines = []
    for id, cost in sorted(costs.items()):
        entry = yaml.safe_dump(asdict(cost) | {"input": list(cost.input)}, default_flow_style=True, width=1000)
        lines.append(f"{id}: {entry.strip()}\n")
    return HEADER + "".join(lines)


def cost_problems(costs: dict[str, Cost], experiments: Experiments, paper: dict[str, Any]) -> Iterator[str]:
    """Rows without an entry, entries without a row, and entries of networks that were changed since."""
    rows = counted_rows(experiments, paper)
    for id, model in rows.items():
        if id not in costs:
            yield f"results/costs.yaml has no cost of {id}; {MENDED}"
        elif costs[id].model != model_hash(model):
            yield f"results/costs.yaml has the cost of another network for {id}, whose files were changed; {MENDED}"
    for id in costs.keys() - rows.keys():
        yield f"results/costs.yaml has a cost of {id}, which is no row; python scripts/cost.py --write removes it"
