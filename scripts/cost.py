"""Multiply-adds and parameters of the networks in the paper's Tables 1 and 2, beside the printed ones.

    python scripts/cost.py                                   # all rows of both tables
    python scripts/cost.py --json
    python scripts/cost.py drconv_shufflenetv2_0.5x --image-size 128 --classes 10    # any files of configs/model

Two columns that are never mixed (decision D9): by the paper's convention, to compare with the printed numbers, and
the true ones, in which everything that a network computes is counted.
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from drconv import count_cost  # noqa: E402
from drconv.config import ModelConfig  # noqa: E402
from models import create_model  # noqa: E402

# Widths (model.width) at which the unstarred network would cost what a starred row prints.
FITTING_WIDTHS = {
    "table1/drconv_lite_shufflenetv2_0.5x": 0.45,
    "table1/drconv_lite_shufflenetv2_1x": 0.82,
    "table1/drconv_lite_mobilenetv2_1.0x": 0.73,
    "table1/drconv_lite_mobilenetv1_1.0x": 0.74,
}
STARRED = "the paper does not explain *; here 2 channel groups (D4). model.width={} would fit, no factor fits all rows"
RELEASED = "the form of the released code; the printed number fits the other form, experts cost m x 8 products of C O"
NOTES = (
    {name: STARRED.format(width) for name, width in FITTING_WIDTHS.items()}
    | {
        f"table1/drconv_released_{network}": RELEASED
        for network in ("shufflenetv2_0.5x", "shufflenetv2_1x", "mobilenetv2_1.0x", "mobilenetv1_1.0x")
    }
    | {
        "table1/drconv_shufflenetv2_0.5x": "misfit: a guide per convolution would give 46.2M here, but 160.1M at 1x",
    }
)


@dataclass(frozen=True)
class Row:
    """Multiply-adds in millions; ``printed`` is None for a network that the paper has not."""

    name: str
    printed: float | None
    paper_convention: float
    true: float
    parameters: int
    note: str


def load_model_config(name: str) -> ModelConfig:
    """A file of ``configs/model`` under its schema.

    Raises:
        FileNotFoundError: there is no such file.
    """
    path = ROOT / "configs" / "model" / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{name} is not a model; choose one of the files in configs/model")
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), OmegaConf.load(path)))
    assert isinstance(config, ModelConfig)
    return config


def measure(
    model: str, image_size: int = 224, num_classes: int = 1000, table: str = "", printed: float | None = None
) -> Row:
    """Builds a network and counts it for one picture."""
    config = load_model_config(model)
    network = create_model(config, num_classes, image_size)
    cost = count_cost(network, getattr(network, "input_size", image_size))
    name = f"{table}/{model}" if table else model
    convention, true = cost.paper_multiply_adds / 1e6, cost.multiply_adds / 1e6
    return Row(name, printed, round(convention, 2), round(true, 2), cost.parameters, NOTES.get(name, ""))


def table_rows() -> list[Row]:
    """All rows of Tables 1 and 2, as ``results/paper.yaml`` lists them."""
    paper = yaml.safe_load((ROOT / "results" / "paper.yaml").read_text())
    return [
        measure(model, table=table, printed=row["madds"])
        for table in ("table1", "table2")
        for model, row in paper[table].items()
    ]


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
    parser.add_argument("--image-size", type=int, default=224, help="pixels")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    os.environ.setdefault("DRCONV_KERNEL", "torch")  # shapes are all that is needed: do not wait for a compiler
    try:
        rows = [measure(m, arguments.image_size, arguments.classes) for m in arguments.models] or table_rows()
    except FileNotFoundError as error:
        parser.error(str(error))
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else render(rows))


if __name__ == "__main__":
    main()
