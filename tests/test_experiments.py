"""Every file of configs/model and configs/experiment: composes, claims what the paper prints, and trains."""

import inspect
import json
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

import train
from drconv import count_cost
from drconv.compose import name_experiment, typed
from drconv.config import Config, DRConvConfig, FacesConfig
from drconv.config_check import validate
from drconv.model_files import load_model_config, model_files
from drconv.nn import PRINTED_FORM, DRConv2d, Guide
from drconv.results.decisions import find_decisions
from drconv.results.experiments import Experiments
from drconv.results.sources import load_sources
from drconv.results.tables import make_tables
from models import create_model

ROOT = Path(__file__).parents[1]
MODELS = sorted(path.stem for path in (ROOT / "configs/model").glob("*.yaml"))
FOLDER = ROOT / "configs/experiment"
EXPERIMENTS = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.yaml"))
PAPER = yaml.safe_load((ROOT / "results/paper.yaml").read_text())
EXPERIMENT_FILES = Experiments(ROOT / "configs")
DECISIONS = {f"D{i}" for i in range(1, 12)}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """All experiments as they stand, each composed once."""
    folder = tmp_path_factory.mktemp("experiments")
    fixed = [f"data.root={folder}", f"outputs={folder}", f"run={folder}/run"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        found = {name: typed(compose("train", [f"experiment={name}", *fixed])) for name in EXPERIMENTS}
    for name, config in found.items():
        name_experiment(config, name)
    return found


def test_files_hold_choices_decisions_and_one_line_of_note() -> None:
    for name in EXPERIMENTS:
        text = (FOLDER / f"{name}.yaml").read_text()
        assert text.startswith("# @package _global_\ndefaults:")
        assert text.count("#") == 1
        content = yaml.safe_load(text)
        assert content.keys() <= {"defaults", "model", "data", "experiment"}
        claim = content["experiment"]
        assert set(claim) in ({"same_as"}, {"decisions"} | (set(claim) & {"tolerance", "note"}))
        assert len(claim.get("note", "").splitlines()) <= 1
    for name in MODELS:
        lines = (ROOT / f"configs/model/{name}.yaml").read_text().splitlines()
        first = lines[1] if lines[0] == "# @package _global_" else lines[0]
        assert first in (f"# python train.py model={name}", f"# python scripts/cost.py {name}")


def test_experiments_claim_what_the_paper_prints(configs: dict[str, Config]) -> None:
    for name, config in configs.items():
        claim = config.experiment
        assert claim.id == EXPERIMENT_FILES.run_of(name)
        assert claim.metric == ("seen/box_ap" if name.startswith("small/coco128/") else None)
        assert set(claim.decisions) <= DECISIONS
        assert "D10" in claim.decisions
        table, _, row = claim.id.partition("/")
        printed = PAPER[table][row] if table in PAPER else {}
        assert claim.tolerance == ((1.0 if printed.get("quoted") else 0.5) if printed else None)
        assert ("not controlled" in (claim.note or "")) == printed.get("quoted", False)
        assert ("hypothesis" in (claim.note or "")) == printed.get("starred", False)
        assert ("D4" in claim.decisions) == (config.model.drconv.groups == 2) == printed.get("starred", False)


def test_equal_runs_are_one_run(configs: dict[str, Config]) -> None:
    """A row that says ``same_as`` composes to that row; no two others compute the same."""
    runs: dict[str, str] = {}
    for name, config in configs.items():
        own = EXPERIMENT_FILES.run_of(name)
        assert EXPERIMENT_FILES.run_of(own) == own
        assert replace(config, experiment=configs[own].experiment) == configs[own]
        if own == name:
            computed = str((config.model, config.recipe, config.data))
            assert computed not in runs, (name, runs[computed])
            runs[computed] = name
    assert {name for name in EXPERIMENTS if EXPERIMENT_FILES.run_of(name) == "table1/drconv_shufflenetv2_0.5x"} == {
        "ablation/regions/m8",
        "ablation/spatial/full",
        "fig4/drconv_shufflenetv2_0.5x",
        "table1/drconv_shufflenetv2_0.5x",
    }


@pytest.mark.parametrize("name", ["fig4/drconv_shufflenetv2_0.5x", "table1/drconv_shufflenetv2_0.5x"])
def test_command_trains_the_run_that_a_row_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [f"experiment={name}", f"data.root={tmp_path}", f"outputs={tmp_path}"]
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        raw = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(raw)
    with open_dict(raw):
        del raw["hydra"]
    config = typed(raw)
    assert config.experiment.id == "table1/drconv_shufflenetv2_0.5x"
    assert config.run == f"{tmp_path}/table1/drconv_shufflenetv2_0.5x/seed0"
    assert ("experiment=table1/drconv_shufflenetv2_0.5x" in capsys.readouterr().out) == name.startswith("fig4")


def test_decisions_are_those_in_force(configs: dict[str, Config]) -> None:
    """What acts on guides and generators is named where it is on, and not where the alternative runs."""
    for name, config in configs.items():
        options, is_ours = config.model.drconv, config.model.conv == "drconv"
        is_grouped = options.generator == "grouped"
        remedy = {key: getattr(options, key) for key in PRINTED_FORM if is_grouped or key != "filter_sharing"}
        expected = {
            "D1": is_ours and is_grouped and options.hidden is None,
            "D2": is_ours and options.guide == "block",
            "D11": is_ours and any(value != PRINTED_FORM[key] for key, value in remedy.items()),
        }
        for decision, in_force in expected.items():
            assert (decision in config.experiment.decisions) == in_force, (name, decision)
        assert find_decisions(config.experiment.decisions, asdict(config.model)) == config.experiment.decisions
        assert EXPERIMENT_FILES.describe(name)["decisions"] == config.experiment.decisions


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (PRINTED_FORM, ["D1", "D2", "D3", "D10"]),
        (PRINTED_FORM | {"init_gain": 0.5}, ["D1", "D2", "D3", "D10", "D11"]),
        (PRINTED_FORM | {"generator": "experts", "filter_sharing": 0.9}, ["D2", "D3", "D10"]),
        ({"guide": "own"}, ["D1", "D3", "D10", "D11"]),
        ({"hidden": 64}, ["D2", "D3", "D10", "D11"]),
    ],
)
def test_overrides_change_the_decisions(configs: dict[str, Config], overrides: dict, expected: list[str]) -> None:
    config = configs["small/imagenette/drconv_shufflenetv2_0.5x"]
    model = asdict(config.model)
    model["drconv"] |= overrides
    assert find_decisions(config.experiment.decisions, model) == expected


def test_every_row_of_the_paper_has_its_experiment() -> None:
    assert {name.removeprefix("table1/") for name in EXPERIMENTS if name.startswith("table1/")} == set(PAPER["table1"])
    assert {name.removeprefix("table2/") for name in EXPERIMENTS if name.startswith("table2/")} == set(PAPER["table2"])
    assert sum(name.startswith("fig4/") for name in EXPERIMENTS) == 16
    assert set(PAPER["table1"]) | set(PAPER["table2"]) <= set(MODELS)


def test_every_experiment_is_in_a_table() -> None:
    sources = load_sources(ROOT)
    tables = make_tables(sources)
    shown = {str(row[0]).split("`")[1] for name in sources.comparisons for row in tables[name].rows}
    shown |= {
        f"{name}/{str(row[0]).split('`')[1]}" for name in ("table1", "table2", "table3") for row in tables[name].rows
    }
    assert set(sources.experiments.ids) == shown


def test_imagenet_rows_share_one_recipe(configs: dict[str, Config]) -> None:
    faces = [config for name, config in configs.items() if name.startswith("table2/")]
    rows = [
        config for name, config in configs.items() if not name.startswith(("small/", "table2/", "table3/", "testbed/"))
    ]
    for group in (rows, faces):
        assert all(config.recipe == group[0].recipe and config.data == group[0].data for config in group)


def test_small_experiments_differ_in_the_model_alone(configs: dict[str, Config]) -> None:
    for folder in ("small/imagenette", "small/cifar10", "small/inside", "small/faces", "testbed"):
        rows = [config for name, config in configs.items() if name.startswith(folder)]
        assert all(config.recipe == rows[0].recipe and config.data == rows[0].data for config in rows)
        networks = [str(config.model) for config in rows]
        assert len(networks) == len(set(networks))


def test_networks_and_layers_have_the_same_defaults(configs: dict[str, Config]) -> None:
    """``DRConvConfig``, which imports no torch, against ``DRConv2d``; and the printed form in both."""
    layer = {name: parameter.default for name, parameter in inspect.signature(DRConv2d).parameters.items()}
    options = asdict(DRConvConfig())
    common = options.keys() & layer.keys() - {"guide", "groups"}
    assert {"init_gain", "filter_sharing", "generator_gradient", "guide_norm", "regions", "hidden"} <= common
    assert {name: options[name] for name in common} == {name: layer[name] for name in common}
    assert inspect.signature(Guide).parameters["norm"].default == layer["guide_norm"]
    printed = configs["small/inside/printed"].model.drconv
    assert asdict(printed) == options | PRINTED_FORM


def test_model_files_are_what_their_names_say() -> None:
    """A width is written as it is in the name; so is the convolution."""
    for name in model_files():
        config = load_model_config(name)
        if found := re.search(r"_([\d.]+)x$", name):
            assert config.width == float(found[1])
        conv = {"drconv": "drconv", "condconv": "condconv", "local": "local", "dk": "deformable"}
        assert config.conv == conv.get(name.partition("_")[0], "standard")
        own = {"lite": {"groups": 2}, "released": asdict(released_form())}.get(
            name.partition("_")[2].partition("_")[0], {}
        )
        if config.conv == "drconv" and "rcnn" not in name and "fpn" not in name:
            assert asdict(config.drconv) == asdict(DRConvConfig()) | own


def released_form() -> DRConvConfig:
    return DRConvConfig(generator="experts", filter_sharing=0.0, generator_gradient=1.0)


def test_widened_networks_match_drconv(configs: dict[str, Config]) -> None:
    """The baselines of small/: as many true multiply-adds, or parameters, as the DRConv network they stand beside."""
    for name, config in configs.items():
        plain, same, what = name.partition("_same_")
        if not same:
            continue
        rival = configs[plain.replace("shufflenetv2", "drconv_shufflenetv2")]
        size = config.data.image_size
        ours, theirs = (count_cost(create_model(c.model, 10, size), size) for c in (config, rival))
        if what == "madds":
            assert ours.multiply_adds == pytest.approx(theirs.multiply_adds, rel=0.01)
        else:
            assert ours.parameters == pytest.approx(theirs.parameters, rel=0.01)


def reduce(config: Config, run: Path) -> Config:
    """The experiment's own model, recipe and augmentation on four generated pictures of 64 pixels, for two steps.

    With the stem of large pictures, and the learning rate scaled to the batch so that two steps stay finite.
    """
    size = 64
    recipe, data = config.recipe, config.data
    is_faces = config.task.name == "identification"
    optimizer = replace(recipe.optimizer, lr=recipe.optimizer.lr * 4 / recipe.batch_size)
    schedule = replace(recipe.schedule, warmup_steps=min(1, recipe.schedule.warmup_steps))
    resize = round(size * data.eval_resize / data.image_size)
    small_data = replace(data, name="generated", num_generated=4, num_classes=10, holdout=0.0)
    small_data = replace(small_data, image_size=size, eval_resize=resize)
    if is_faces:
        small_data = replace(data, name="generated_faces", faces=FacesConfig(identities=8, each=2))
    model = replace(config.model, stem="imagenet")
    if config.task.name == "detection":  # thin FPN and heads, as in the demonstration
        small_data = replace(data, name="scenes", coco=replace(data.coco, sizes=[64], max_size=96))
        model = replace(model, width=0.25, detector=replace(model.detector, rois=16))
    small = replace(
        config,
        model=model,
        recipe=replace(recipe, steps=2, epochs=None, batch_size=4, optimizer=optimizer, schedule=schedule),
        data=small_data,
        runtime=replace(config.runtime, workers=0, device="cpu", kernel="torch", threads=1, sync_bn=False),
        logging=replace(config.logging, wandb="disabled"),
        run=str(run),
    )
    validate(small)
    return small


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if EXPERIMENT_FILES.run_of(name) == name])
def test_every_experiment_trains_and_evaluates(name: str, configs: dict[str, Config], tmp_path: Path) -> None:
    config = configs[name]
    small = reduce(config, tmp_path / "run")
    train.worker(small)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["steps"] == 2
    assert result["config"]["recipe"]["schedule"]["name"] == config.recipe.schedule.name
    assert result["config"]["data"]["augment"] == asdict(config.data.augment)
    assert all(math.isfinite(value) for value in result["metrics"].values())
    shutil.rmtree(tmp_path / "run")  # hundreds of megabytes for some
