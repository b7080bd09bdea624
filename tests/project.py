"""A project with runs and records that are made up, to make tables and pages from."""

import copy
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

import drconv.compose  # noqa: F401, registers the schema
from drconv.config import Config
from drconv.engine.run_folder import RunFolder
from drconv.results.check import find_problems
from drconv.results.collect import collect, find_results
from drconv.results.make_record import circumstances, run_record, write_json
from drconv.results.render import PAGES_WITH_BLOCKS, render_pages
from drconv.results.sources import load_sources
from drconv.results.tables import make_tables
from drconv.weights import save_weights

ROOT = Path(__file__).parents[1]
PLAIN = "small/imagenette/shufflenetv2_0.5x"
DRCONV = "small/imagenette/drconv_shufflenetv2_0.5x"


def page_with(*names: str) -> str:
    blocks = [f"<!-- tables:begin {name} -->\n<!-- tables:end -->\n\n" for name in names]
    return f"# Words of a person\n\n{''.join(blocks)}More words.\n"


def make_project(folder: Path) -> Path:
    """A project with this one's experiments and printed numbers, and no record."""
    folder.mkdir(exist_ok=True)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "results").mkdir()
    (folder / "docs").mkdir()
    for name in ("paper.yaml", "comparisons.yaml", "costs.yaml"):
        shutil.copy(ROOT / "results" / name, folder / "results" / name)
    (folder / "README.md").write_text("# Title\n\n" + page_with("measured", "summary"))
    for page, names in PAGES_WITH_BLOCKS.items():
        if page.startswith("docs/"):
            (folder / page).write_text(page_with(*names))
    write_pages(folder)
    return folder


def write_pages(root: Path) -> None:
    for path, text in render_pages(root, make_tables(load_sources(root))).items():
        path.write_text(text)


def problems_of(root: Path) -> list[str]:
    return find_problems(root, load_sources(root), [root / "outputs"])


@functools.cache
def compose_config(id: str, overrides: tuple[str, ...]) -> Config:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        raw = compose("train", overrides=[f"experiment={id}", "data.root=/somewhere/set", *overrides])
    config = OmegaConf.to_object(raw)
    assert isinstance(config, Config)
    config.experiment.id, config.experiment.same_as = id, None
    return config


def make_run(root: Path, id: str, seed: int, top1: float, *overrides: str) -> Path:
    """A run folder as training leaves it; the record is written by the engine's own function."""
    config = copy.deepcopy(compose_config(id, overrides))
    config.seed = seed
    config.run = "/".join(["outputs", id, ",".join([*overrides, f"seed{seed}"])])
    folder = RunFolder(root / config.run)
    folder.path.mkdir(parents=True)
    save_weights(folder.weights("last"), nn.Linear(2, 2), {})
    steps = 2960
    metrics = {"top1": top1, "top5": 99.0, "loss": 1.25, "samples": 3925}
    train = {"loss": 1.1, "top1": top1 + 3, "lr": 0.0}
    entries = [{"step": steps, "split": "train", **train}, {"step": steps, "split": "val", **metrics}]
    metrics = {f"val/{name}": value for name, value in metrics.items()}
    folder.metrics.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    details: dict[str, Any] = {
        "steps": steps,
        "wall_time_s": 5400.0,
        "train": train,
        "data": {"train": {"files": 9469, "hash": "aa"}, "val": {"files": 3925, "hash": "bb"}},
        "cost": {"parameters": 352_000, "multiply_adds": 13_200_000, "paper_multiply_adds": 13_500_000},
    }
    conditions = circumstances(torch.device("cpu"), 1)
    weights = {"last": folder.weights("last")}
    write_json(folder.result, run_record(config, {"last": metrics}, weights, details, conditions))
    return folder.path


def record_all(root: Path) -> list[Path]:
    runs = root / "results" / "runs"
    for result in find_results([root / "outputs"]):
        collect(result, runs)
    write_pages(root)
    return sorted(runs.glob("*.json"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def row_of(page: Path, name: str) -> list[str]:
    """Cells of the first table row that begins with the name."""
    lines = [line for line in page.read_text().splitlines() if line.startswith(f"| `{name}")]
    return [cell.strip() for cell in lines[0].strip("|").split(" | ")]


def finish_untrained(config: Config, network: nn.Module, names: list[str]) -> Path:
    """The folder of a run as training leaves it, with the weights that the network has."""
    folder = RunFolder(Path(str(config.run)))
    folder.open(config)
    path = folder.weights("last")
    save_weights(path, network, {"output_names": names})
    details: dict[str, Any] = {"steps": 6, "wall_time_s": 9.0, "train": {}, "data": {}, "cost": None}
    metrics = {"last": {"val/top1": 10.0}}
    record = run_record(config, metrics, {"last": path}, details, circumstances(torch.device("cpu"), 1))
    write_json(folder.result, record)
    folder.close()
    return folder.path
