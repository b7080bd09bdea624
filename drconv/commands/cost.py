"""Multiply-adds and parameters of the networks in the paper's Tables 1 and 2, beside the printed ones.

    drconv cost                                              # all rows of both tables
    drconv cost --json
    drconv cost drconv_shufflenetv2_0.5x --image-size 128 --classes 10    # any files of configs/model
    python scripts/cost.py --write                           # in a checkout: every row of every table, for the tables

Two columns that are never mixed (decision D9): by the paper's convention, to compare with the printed numbers, and
the true ones, in which everything that a network computes is counted.
"""

import argparse
import json
import os
from dataclasses import asdict, dataclass

import yaml

from drconv.config import CocoConfig, Config, ModelConfig
from drconv.config_detection import DETECTORS
from drconv.files import replace_file
from drconv.messages import exit_with
from drconv.model_files import load_model_config
from drconv.paths import CHECKOUT, CONFIGS, RESULTS
from drconv.results.costs import Cost, counted_rows, model_hash, render_costs
from drconv.results.experiments import Experiments, compose_config

# Widths (model.width) at which the unstarred network would cost what a starred row prints.
FITTING_WIDTHS = {
    "table1/drconv_lite_shufflenetv2_0.5x": 0.45,
    "table1/drconv_lite_shufflenetv2_1x": 0.82,
    "table1/drconv_lite_mobilenetv2_1.0x": 0.73,
    "table1/drconv_lite_mobilenetv1_1.0x": 0.74,
}
STARRED = "the paper does not explain *; here 2 channel groups (D4). model.width={} would fit, no factor fits all rows"
RELEASED = "the form of the released code; the printed number fits the other form, experts cost m x 8 products of C O"
RELEASED_NETWORKS = ("shufflenetv2_0.5x", "shufflenetv2_1x", "mobilenetv2_1.0x", "mobilenetv1_1.0x")
NOTES = {name: STARRED.format(width) for name, width in FITTING_WIDTHS.items()} | {
    **{f"table1/drconv_released_{network}": RELEASED for network in RELEASED_NETWORKS},
    "table1/drconv_shufflenetv2_0.5x": "misfit: a guide per convolution would give 46.2M here, but 160.1M at 1x",
}
IMAGE_SIZE, NUM_CLASSES = 224, 1000  # of ImageNet
COCO_CLASSES = 80


@dataclass(frozen=True)
class Row:
    """Multiply-adds in millions; ``printed`` is None for a network that the paper does not list."""

    name: str
    printed: float | None
    paper_convention: float
    true: float
    parameters: int
    note: str


def count(
    config: ModelConfig, image_size: int, num_classes: int, coco: CocoConfig | None = None, hash: str = ""
) -> Cost:
    """Builds a network and counts it for one picture, at the network's own input size where it has one.

    Of a detector body and FPN are counted, for the commonest picture of COCO at the size that ``coco`` says.
    """
    from drconv import count_cost
    from drconv.commands.networks import create_model

    network = create_model(config, num_classes, image_size)
    if config.name in DETECTORS:
        from drconv.tasks.detection.task import detector_cost

        cost = detector_cost(network, coco or CocoConfig())
    else:
        cost = count_cost(network, getattr(network, "input_size", image_size))
    return Cost(hash, cost.input_size, cost.parameters, cost.multiply_adds, cost.paper_multiply_adds)


def measure(
    model: str,
    image_size: int = IMAGE_SIZE,
    num_classes: int = NUM_CLASSES,
    table: str = "",
    printed: float | None = None,
) -> Row:
    """The row of a file of ``configs/model``."""
    cost = count(load_model_config(model), image_size, num_classes)
    name = f"{table}/{model}" if table else model
    convention, true = cost.paper_multiply_adds / 1e6, cost.multiply_adds / 1e6
    return Row(name, printed, round(convention, 2), round(true, 2), cost.parameters, NOTES.get(name, ""))


def table_rows() -> list[Row]:
    """All rows of Tables 1 and 2, as ``results/paper.yaml`` lists them."""
    paper = yaml.safe_load((RESULTS / "paper.yaml").read_text())
    return [
        measure(model, table=table, printed=row["madds"])
        for table in ("table1", "table2")
        for model, row in paper[table].items()
    ]


def count_all() -> dict[str, Cost]:
    """Every row of every table; equal networks on equal data are counted once."""
    experiments = Experiments(CONFIGS)
    paper = yaml.safe_load((RESULTS / "paper.yaml").read_text())
    costs: dict[str, Cost] = {}
    counted: dict[str, Cost] = {}
    for id, model in counted_rows(experiments, paper).items():
        if id in experiments.ids:
            config: Config = compose_config(CONFIGS, id)
            classes = COCO_CLASSES if config.model.name in DETECTORS else config.data.num_classes or NUM_CLASSES
            asked = (config.model, config.data.image_size, classes, config.data.coco)
        else:
            asked = (load_model_config(id.rpartition("/")[2]), IMAGE_SIZE, NUM_CLASSES, CocoConfig())
        hash = model_hash(model)
        key = f"{hash} {asked}"
        if key not in counted:
            counted[key] = count(*asked, hash=hash)
            print(f"{id}: {counted[key].multiply_adds / 1e6:.1f}M", flush=True)
        costs[id] = counted[key]
    return costs


def render(rows: list[Row]) -> str:
    """A table of fixed columns."""
    width = max(len(row.name) for row in rows)
    lines = [f"{'multiply-adds, millions':{width}}  printed  paper's convention     true  parameters"]
    for row in rows:
        printed = "" if row.printed is None else f"{row.printed:.0f}"
        numbers = f"{printed:>7}  {row.paper_convention:>18.2f}  {row.true:>7.2f}  {row.parameters:>10,}"
        lines.append(f"{row.name:{width}}  {numbers}  {row.note}".rstrip())
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="files of configs/model; none for the rows of Tables 1 and 2")
    parser.add_argument("--image-size", type=int, default=IMAGE_SIZE, help="pixels")
    parser.add_argument("--classes", type=int, default=NUM_CLASSES)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--write", action="store_true", help="write results/costs.yaml, which tables are made from")
    arguments = parser.parse_args()
    if arguments.write and (CHECKOUT is None or arguments.models):
        parser.error("--write counts every row of a checkout; leave the models out, and run it in a checkout")
    os.environ.setdefault("DRCONV_KERNEL", "torch")  # shapes are all that is needed: do not wait for a compiler
    try:
        if arguments.write:
            costs = count_all()
            replace_file(RESULTS / "costs.yaml", render_costs(costs))
            print(f"{len(costs)} rows written to results/costs.yaml; python scripts/tables.py shows them")
            return
        rows = [measure(m, arguments.image_size, arguments.classes) for m in arguments.models] or table_rows()
    except FileNotFoundError as error:
        parser.error(str(error))
    except Exception as error:
        exit_with(error)
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else render(rows))
