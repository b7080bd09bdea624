"""Composition, rules and one-line errors."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from drconv.arguments import expand_glob
from drconv.compose import as_yaml
from drconv.config import Config
from drconv.config_check import CHOICES, WIDTHS, model_names, steps_of_run, validate, value_of
from drconv.config_ranges import RANGES, numeric_keys, range_problems
from drconv.errors import ConfigError
from drconv.messages import CONFIGS, schema_keys

ROOT = Path(__file__).parents[1]


def test_model_alone_is_enough(make_config: Callable[..., Config]) -> None:
    config = make_config(base=["model=drconv_shufflenetv2_0.5x"])
    assert (config.model.conv, config.data.name, config.recipe.name) == ("drconv", "digits", "digits")


def test_recipe_brings_its_data_and_the_command_line_wins(make_config: Callable[..., Config], tmp_path: Path) -> None:
    base = ["model=shufflenetv2_1x", "recipe=imagenet", f"data.root={tmp_path}"]
    config = make_config(base=base)
    assert config.data.name == "imagenet"
    assert (config.recipe.steps, config.recipe.batch_size, config.recipe.optimizer.lr) == (300_000, 1024, 0.5)
    assert config.data.channel_order == "bgr"
    config = make_config("recipe.optimizer.lr=0.25", "data=imagefolder", base=base)
    assert config.recipe.optimizer.lr == 0.25
    assert config.data.name == "imagefolder"


def test_the_paper_s_length_is_240_epochs(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(base=["model=shufflenetv2_1x", "recipe=imagenet", f"data.root={tmp_path}"])
    by_steps = steps_of_run(config, 1_281_167)
    config.recipe.steps, config.recipe.epochs = None, 240.0
    assert steps_of_run(config, 1_281_167) == pytest.approx(by_steps, rel=1e-3)


def test_all_problems_are_reported_together(make_config: Callable[..., Config]) -> None:
    config = make_config()
    config.recipe.batch_size = 30
    config.runtime.devices = 4
    config.runtime.precision = "fp17"
    config.data.eval_resize = 8
    config.model.conv = "standard"
    config.model.drconv.regions = 4
    with pytest.raises(ConfigError) as caught:
        validate(config)
    message = str(caught.value)
    for part in (
        "recipe.batch_size=30",
        "runtime.precision=fp17",
        "data.eval_resize=8",
        "model.drconv.regions=4 has no effect",
    ):
        assert part in message


@pytest.mark.parametrize("key", CHOICES)
def test_every_choice_is_checked(make_config: Callable[..., Config], key: str) -> None:
    config = make_config()
    owner = value_of(config, key.rpartition(".")[0])
    setattr(owner, key.rpartition(".")[2], "nonsense")
    with pytest.raises(ConfigError, match=rf"{key}=nonsense is not known; choose "):
        validate(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.epochs=3", "either recipe.steps or recipe.epochs"),
        ("recipe.schedule.warmup_steps=6", "must be below recipe.steps=6"),
        ("recipe.schedule.name=multistep", "needs recipe.schedule.milestones"),
        ("recipe.schedule.milestones=[3]", "has no effect under recipe.schedule.name"),
        ("runtime.precision=fp16", "needs runtime.device=cuda"),
        ("data=imagefolder", "needs data.root"),
        ("data.root=/nowhere/at/all", "is not a folder; expected /nowhere/at/all/train/<class>/<picture>"),
        ("recipe.batch_size=0", "recipe.batch_size=0 must be at least 1 and at most"),
        ("recipe.optimizer.lr=-1", "recipe.optimizer.lr=-1.0 must be at least 0"),
        ("recipe.ema_decay=1.5", "must be above 0 and below 1"),
        ("weights=/nowhere.safetensors", "is not a file"),
        ("model.name=shufflenet", "model.name=shufflenet is not known; did you mean shufflenetv2"),
        ("model.width=2.5", "shufflenetv2 takes 0.25 to 2.0"),
        ("data.num_classes=3", "the embedded digits have 10"),
        ("run=", "run= is empty; give a folder"),
        ("outputs=", "outputs= is empty; give a folder"),
    ],
)
def test_rules(make_config: Callable[..., Config], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[").replace("(", r"\(")):
        make_config(override)


def test_every_number_has_a_range() -> None:
    assert set(numeric_keys()) <= RANGES.keys()


def set_value(config: Config, key: str, value: object) -> None:
    setattr(value_of(config, key.rpartition(".")[0]) if "." in key else config, key.rpartition(".")[2], value)


@pytest.mark.parametrize("key", [key for key in numeric_keys() if ".groups." not in key])
def test_both_ends_of_every_number(make_config: Callable[..., Config], key: str) -> None:
    """Infinity, NaN, what lies beyond an end, and a flag in place of a number."""
    low, high = (float(end) for end in RANGES[key][1:-1].split(", "))
    config = make_config()
    default = value_of(config, key)
    assert not list(range_problems(config))
    beyond = [math.nan, math.inf, -math.inf, low - 1, high * 2, 10**400, True]
    beyond += [low] * (RANGES[key][0] == "(") + [high] * (RANGES[key][-1] == ")")
    for value in beyond:
        set_value(config, key, [value, *default[1:]] if isinstance(default, list) and default else value)
        problems = list(range_problems(config))
        assert len(problems) == 1, value
        assert problems[0].startswith(f"{key}=")


@pytest.mark.parametrize(
    "override",
    [
        *("recipe.optimizer.momentum=5", "recipe.optimizer.guide_lr=-3", "data.augment.rotate=nan"),
        *("data.augment.jitter=[nan,-1,1e9]", "data.augment.crop_scale=[1,0.5]", "data.augment.crop_ratio=[0,0]"),
        *("recipe.optimizer.lr=1e39", "model.dropout=nan", "data.num_classes=0", "data.augment.crop_padding=1000000"),
        *("runtime.threads=1000000", "recipe.batch_size=1000000000000", "runtime.workers=2000"),
        *("model.drconv.regions=100000", "seed=100000000000000000000000", "data.std=[0,1,1]", "data.mean=[inf,0,0]"),
    ],
)
def test_found_numbers_are_refused(make_config: Callable[..., Config], override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]) as caught:
        make_config(override)
    assert "must" in str(caught.value)


def test_epochs_that_do_not_end_are_refused(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.epochs=inf must be above 0 and at most"):
        make_config("recipe.steps=null", "recipe.epochs=inf")


def test_glob_lists_a_whole_table() -> None:
    table = expand_glob("experiment=glob(table1/*)", CONFIGS)
    assert table.count(",") + 1 == len(list((CONFIGS / "experiment" / "table1").glob("*.yaml"))) == 21
    assert "table1/drconv_shufflenetv2_0.5x" in table
    assert expand_glob("seed=0,1", CONFIGS) == "seed=0,1"


def test_schema_keys_reach_the_leaves() -> None:
    assert {"recipe.optimizer.lr", "model.drconv.regions", "data.augment.crop_scale", "seed"} <= set(schema_keys())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model=drconv_shufflenetv2_05x"], "near: drconv_shufflenetv2_0.5x"),
        (["model=shufflenetv2_1x", "recipe.optimiser.lr=1"], "near: recipe.optimizer.lr"),
        (["model=shufflenetv2_1x", "recipe.steps=abc"], "recipe.steps"),
        (["model=shufflenetv2_1x", "seeds=1"], "near: seed"),
        (["recipe=digits"], "model= is missing"),
        (["experiment=table1/shufflenetv2_05x"], "near: table1/shufflenetv2_0.5x"),
        (["model=shufflenetv2_1x", "+logging.a=1"], "keys cannot be added"),
        (["-m", "experiment=glob(nothing/*)"], "matches nothing"),
        (["model=null"], "the command line cannot be read"),
        (["experiment=null", "model=shufflenetv2_1x", "seeds=1"], "near: seed"),
        (["model=shufflenetv2_1x", "run=/proc/x"], "check outputs, run and data.root"),
    ],
)
def test_a_mistake_costs_one_line(command: Callable, arguments: list[str], expected: str) -> None:
    outcome = command("train.py", *arguments)
    assert outcome.returncode == 1
    assert expected in outcome.stderr
    assert outcome.stderr.startswith("error: ")
    assert len(outcome.stderr.strip().splitlines()) == 1


def test_rules_about_networks_are_those_of_the_networks() -> None:
    from models import available
    from models.shufflenetv2 import CHANNELS

    assert model_names() == available()
    assert WIDTHS["shufflenetv2"] == (min(CHANNELS), max(CHANNELS))


def test_another_run_s_folder_is_found_before_torch_is_imported(make_config: Callable[..., Config]) -> None:
    config = make_config()
    Path(config.run).mkdir()
    Path(config.run, "config.yaml").write_text(as_yaml(config))
    Path(config.run, "resume.pt").touch()
    code = (
        "import sys, train; from drconv.compose import config_of_run; from drconv.errors import RunFolderError\n"
        "config = config_of_run([sys.argv[1]]); config.seed = 9\n"
        "try: train.train(config)\n"
        "except RunFolderError as error: sys.exit(str(error) + str('torch' in sys.modules))"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code, f"run={config.run}"], cwd=ROOT, capture_output=True, text=True
    )
    assert "seed: 0 there, 9 here" in outcome.stderr
    assert outcome.stderr.strip().endswith("False")


def test_the_note_and_the_states_of_the_demonstration(make_config: Callable[..., Config], tmp_path: Path) -> None:
    config = make_config(base=["model=shufflenetv2_1x"])
    assert "demonstration" in str(config.recipe.note)
    assert config.logging.checkpoint_every < steps_of_run(config, 1437) / 2
    own = make_config("data=imagefolder", f"data.root={tmp_path}", base=["model=shufflenetv2_1x"])
    assert own.recipe.note is None
