"""What a newcomer meets: help, mistyped keys, the first and last lines of a run, the table of a sweep, Ctrl-C."""

import os
import pickle
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from drconv import cli
from drconv.arguments import check_keys, prepare, quote_text
from drconv.compose import as_yaml, compose_command, config_of_run
from drconv.config import Config
from drconv.config_check import CHOICES
from drconv.engine import next_steps
from drconv.engine.progress import Progress
from drconv.errors import ConfigError, StoppedError
from drconv.help import as_typed, comments_of_schema, help_text
from drconv.messages import exit_with, schema_keys
from drconv.outcomes import FOLDER, Outcome, Projection, describe_job, read_outcomes, table
from drconv.paths import CONFIGS
from drconv.tasks.classification import Classification
from tests.conftest import TINY

Make = Callable[..., Config]
SECTIONS = {key.rpartition(".")[0] for key in schema_keys()} - {""}


def test_every_key_is_explained_with_its_value_and_choices() -> None:
    config = compose_command(["experiment=table1/drconv_shufflenetv2_0.5x"], CONFIGS, check=False)
    text = help_text("What it does.", CONFIGS, config)
    assert text.startswith("What it does.")
    for key in schema_keys():
        if key not in SECTIONS:
            assert re.search(rf"^  {re.escape(key)}=\S+(\n?) +\S", text, re.M), key
    flat = " ".join(text.split())
    for key, choices in CHOICES.items():
        entry = flat.partition(f" {key}=")[2][:400]
        assert all(str(choice or "null") in entry for choice in choices), key
    assert "recipe.batch_size=1024" in text
    assert "table1/ condconv_mobilenetv1_1.0x" in text


def test_comments_on_the_lines_below_a_key_belong_to_it() -> None:
    assert comments_of_schema()["DataConfig"]["name"].endswith("coco, scenes")
    assert comments_of_schema()["DataConfig"]["mean"] == "of pixels in 0..255, in channel_order"


def test_help_asks_for_no_model(command: Callable) -> None:
    for script in ("train.py", "eval.py"):
        outcome = command(script, "-h")
        assert outcome.returncode == 0
        assert outcome.stdout.startswith(("Trains one network", "Evaluates saved weights"))
        assert "model.name=???" in outcome.stdout


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("modle=x", "model"),
        ("recpie=digits", "recipe"),
        ("lr=1", "recipe.optimizer.lr"),
        ("data.augment.filp=0", "data.augment.flip"),
        ("experment=a", "experiment"),
    ],
)
def test_mistyped_keys_and_groups_name_near_ones(typed: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"near: .*\b{re.escape(near)}\b"):
        check_keys(["seed=1", typed], CONFIGS)


def test_what_is_known_passes() -> None:
    check_keys(["-m", "model=a", "hydra/launcher=basic", "task.options.depth=3", "+x=1", "data@data=digits"], CONFIGS)


def test_paths_are_taken_as_they_are_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    strange = tmp_path / "a=b 'c' (d)"
    strange.mkdir()
    for typed in (str(strange), "~/a=b 'c' (d)"):
        overrides = prepare([*TINY, "data=imagefolder", f"data.root={typed}"], CONFIGS)
        assert compose_command(overrides, CONFIGS).data.root == str(strange)


@pytest.mark.parametrize(
    "value",
    [
        "a=b",
        "a b",
        "é",
        "a,b",
        "[a]",
        "a[b]",
        "{a: b}",
        "2024_01",
        "1e3",
        "true",
        "it's",
        "a\\b=c",
        "a=\\",
        "a\\'=",
        "x(y)",
    ],
)
def test_a_path_is_what_was_typed(value: str, tmp_path: Path) -> None:
    """Composed by Hydra, and beside ``run=``."""
    (tmp_path / "config.yaml").write_text(as_yaml(compose_command([*TINY, f"outputs={tmp_path}"], CONFIGS)))
    typed = [f"outputs={value}", f"experiment.note={value}=", f"data.train_split=ä{value}"]
    config = compose_command([*TINY, *typed], CONFIGS)
    assert (config.outputs, config.experiment.note) == (value, f"{value}=")
    assert config.data.train_split == f"ä{value}"
    beside = config_of_run([f"run={tmp_path}", f"outputs={value}"])
    assert beside is not None
    assert beside.outputs == value


def test_commas_part_the_values_of_a_sweep() -> None:
    assert quote_text("weights=a,b", sweep=True) == "weights=a,b"
    assert quote_text("weights=a,b", sweep=False) == "weights='a,b'"
    assert quote_text("weights=null", sweep=False) == "weights=null"
    for others in ("model.conv=a,b", "seed=1", "-m", "data.mean=[1,2,3]", "outputs='a=b'", "run=a/b.c-d_1"):
        assert quote_text(others, sweep=False) == others


def test_a_list_of_files_is_no_sweep() -> None:
    with pytest.raises(ConfigError, match=r"model takes one file of configs/model/; a sweep is -m model=a,b"):
        check_keys(["model=[a,b]"], CONFIGS)


def test_a_run_s_folder_with_its_overrides_in_the_name_is_found(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "data.fraction=0.1,model.layers=[a,b],seed0"
    folder.mkdir()
    (folder / "config.yaml").write_text(as_yaml(make_config()))
    seen: list[Config] = []
    for place in (str(folder), f"~/{folder.name}"):
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["eval.py", f"run={place}", "runtime.workers=1"])
        cli.command(seen.append, CONFIGS, from_run=config_of_run)()
    assert [(found.run, found.runtime.workers) for found in seen] == [(str(folder), 1)] * 2


@pytest.mark.parametrize("key", ["run", "outputs"])
def test_an_empty_folder_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}= is empty"):
        compose_command([*TINY, f"{key}="], CONFIGS)


def test_values_are_written_as_typed() -> None:
    assert [as_typed(value) for value in (None, True, 0.1, [1, "a"], 4e-5)] == ["null", "true", "0.1", "[1,a]", "4e-05"]


def test_first_and_last_lines(
    make_config: Make, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    config = make_config("recipe.steps=3")
    value = train.train(config)
    lines = capsys.readouterr().out.splitlines()
    starts = [line.split(":")[0] for line in lines[1:6]]
    assert lines[0] == f"{config.run}: loading torch and the data"  # at once, before seconds of imports
    assert starts == ["note", "data", "recipe", "folder", "network"]
    parameters, products = re.search(r"([\d.]+)M parameters, ([\d.]+)M multiply-adds at 32x32", lines[5]).groups()
    from drconv import count_cost
    from models import create_model

    cost = count_cost(create_model(config.model, 10, 32), 32)
    assert float(parameters) == pytest.approx(cost.parameters / 1e6, abs=0.006)
    assert float(products) == pytest.approx(cost.multiply_adds / 1e6, abs=0.06)
    assert len(lines) < 20
    at = lines.index("next:")
    assert lines[at - 1].startswith(f"val/top1 {value:.4g} after 3 steps")
    assert lines[at + 1] == f"  python eval.py run={config.run}"
    assert lines[at + 2].startswith("  python scripts/predict.py run=")
    assert lines[at + 3].endswith("--out masks.png")


def test_the_paper_s_row_stands_beside_a_run_of_it() -> None:
    config = compose_command(["experiment=table1/drconv_shufflenetv2_0.5x"], CONFIGS, check=False)
    config.experiment.id, config.run = "table1/drconv_shufflenetv2_0.5x", "a b"
    lines = list(next_steps.next_lines(config, 66.9))
    assert (
        lines[0]
        == "the paper prints 67.1 for table1/drconv_shufflenetv2_0.5x; this is -0.20, within the tolerance of 0.5"
    )
    assert "run='a b'" in lines[2]
    config.recipe.steps = 3
    assert "with other settings than that row's (recipe.steps=3)" in next(next_steps.next_lines(config, 66.9))
    assert next_steps.printed_number("table3/mask_rcnn_r50") == 39.1
    assert next_steps.printed_number("small/inside/plain") is None


def test_jobs_leave_what_a_table_needs(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    config = make_config()
    with describe_job(0, ["a=1", "b=1"]) as outcome:
        outcome.begin(config)
        outcome.value = 12.5
    with pytest.raises(ConfigError), describe_job(1, ["a=1", "b=2"]):
        raise ConfigError("recipe.steps is wrong")
    with describe_job(2, ["a=1", "b=3"]) as outcome:
        outcome.value = Projection(7200.0, 4, 1.5)
    found = read_outcomes(tmp_path)
    assert [outcome.state for outcome in found] == ["finished", "failed", "finished"]
    lines = list(table(found))
    assert lines[0] == "jobs: 2 finished, 1 failed"
    assert re.fullmatch(r"    0  b=1  finished       0:00:00  val/top1 12.5", lines[1])
    assert lines[2].endswith("recipe.steps is wrong")
    assert lines[3].endswith("would take 2:00:00, 8.00 device-hours, 1.50 GiB")
    assert lines[4] == "all together: 8.00 device-hours"
    assert "a=1" not in "".join(lines)
    Path(config.run).mkdir()
    Path(config.run, "result.json").touch()
    (again := Outcome(0, [])).begin(config)
    assert again.state == "was finished"


def test_a_sweep_ends_with_a_table_and_the_failure_s_exit_code(command: Callable, tmp_path: Path) -> None:
    tiny = [part for part in TINY if not part.startswith("recipe.steps")]
    outcome = command("train.py", "-m", *tiny, "recipe.steps=3,2")  # warm-up of 2 does not fit the second
    assert outcome.returncode == 1
    end = outcome.stdout.partition("jobs: ")[2].splitlines()
    assert end[0] == "1 finished, 1 failed"
    assert re.search(r"0  recipe.steps=3  finished .* val/top1 \d", end[1])
    assert re.search(r"1  recipe.steps=2  failed .* must be below recipe.steps=2", end[2])
    assert "next:" not in outcome.stdout
    assert "Traceback" not in outcome.stderr
    assert [path.name for path in (tmp_path / "outputs" / "multirun").iterdir()] == ["multirun.yaml"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_a_stop_ends_with_the_code_that_shells_expect(
    number: int, code: int, make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    forward = Classification.forward

    def forward_with_signal(self: Classification, batch: dict) -> object:
        os.kill(os.getpid(), number)
        return forward(self, batch)

    monkeypatch.setattr(Classification, "forward", forward_with_signal)
    former = signal.signal(number, signal.SIG_DFL)  # nohup and background jobs have it ignored
    try:
        with pytest.raises(StoppedError) as stopped:
            train.train(make_config("recipe.steps=3"))
    finally:
        signal.signal(number, former)
    with pytest.raises(SystemExit) as left:
        exit_with(pickle.loads(pickle.dumps(stopped.value)))  # as launchers hand errors on
    assert left.value.code == code
    assert "after step 1; the same command continues" in capsys.readouterr().err


def test_the_bar_has_speed_and_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import torch

    now = [100.0]
    monkeypatch.setattr("drconv.engine.progress.time.perf_counter", lambda: now[0])
    progress = Progress(100, 20, 8, torch.device("cpu"))
    progress._is_terminal = True
    now[0] += 10
    progress.bar(40)
    assert capsys.readouterr().out == "\r\033[K[#########               ] step 40/100  16 images/s  left 0:00:30"
    progress.bar(41)
    progress._is_terminal = False
    progress.bar(42)
    assert capsys.readouterr().out == ""
    now[0] += 31
    progress.evaluation_bar(3, 7)
    assert capsys.readouterr().out == "evaluation batch 3/7\n"
