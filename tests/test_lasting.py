"""Runs keep what they promise when files go, code changes, or the environment contradicts; in one process."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval as evaluation
import train
from drconv import errors
from drconv.compose import config_of_run
from drconv.config import Config
from drconv.config_check import length_problems, length_warnings, validate
from drconv.console import LastingOutput
from drconv.engine.run_folder import RunFolder
from drconv.engine.signals import StopSignals
from drconv.engine.trainer import Trainer
from drconv.files import file_hash, replace_file
from drconv.messages import one_line
from drconv.world import is_started_elsewhere, num_ranks

Make = Callable[..., Config]
SHORT = ("recipe.steps=4", "logging.checkpoint_every=1")


class Killed(BaseException):
    """Stands for the end of the process."""


def train_until(config: Config, last: int, before: Callable[[Trainer], None] = lambda trainer: None) -> None:
    """Ends the training before step ``last + 1``, or goes on where ``before`` raises nothing."""
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == last:
            before(self)
            raise Killed
        step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step_or_die)
        with pytest.raises(Killed):
            train.train(config)


def test_a_run_survives_damage_to_its_files(make_config: Make, capsys: pytest.CaptureFixture) -> None:
    """A flipped bit in the state, a log without its last lines, no configuration, another commit: one run has all."""
    whole, config = make_config(*SHORT, run="whole"), make_config(*SHORT)
    train.train(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drconv.results.provenance.code", lambda: {"commit": "old", "dirty": False})
        train_until(config, 3)
    folder = Path(str(config.run))
    content = bytearray((folder / "resume.pt").read_bytes())
    content[len(content) // 2] ^= 16
    (folder / "resume.pt").write_bytes(content)
    (folder / "metrics.jsonl").write_bytes(b'{"step": "a"}\n\xff\xfe\n')
    (folder / "config.yaml").unlink()
    other = make_config(*SHORT, "recipe.optimizer.lr=0.7")
    with pytest.raises(errors.RunFolderError, match=r"lr: 0\.1 there, 0\.7 here"):
        train.train(other)
    train.train(config)  # what was refused has left no configuration of its own
    said = capsys.readouterr().out
    assert "resume.pt is damaged (ValueError: its sha256 differs): going on from resume.previous.pt" in said
    assert "continues at step 2 of 4" in said
    assert "metrics.jsonl lost entries that were there at step 2" in said
    record = json.loads((folder / "result.json").read_text())
    assert file_hash(folder / "model.safetensors") == file_hash(Path(str(whole.run), "model.safetensors"))
    assert record["log_damaged_at"] == [2]
    assert [(entry["step"], entry["commit"] == "old") for entry in record["commits"]] == [(0, True), (2, False)]
    assert "log_damaged_at" not in json.loads(Path(str(whole.run), "result.json").read_text())
    (folder / "config.yaml").unlink()
    with pytest.raises(errors.RunFolderError, match=r"lr: 0\.1 there, 0\.7 here"):
        train.train(other)


def test_a_run_without_its_lock_stops_before_it_writes(make_config: Make) -> None:
    config = make_config(*SHORT)
    folder = Path(str(config.run))
    step, before = Trainer._step, {}

    def lose_the_lock(self: Trainer, batches: object) -> None:
        if self.state.step == 2:
            (folder / "lock").unlink()
            (folder / "lock").touch()  # another process has begun
            before.update({path.name: path.read_bytes() for path in folder.iterdir()})
        step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", lose_the_lock)
        with pytest.raises(errors.RunFolderError, match=r"lock was removed or replaced .* nothing more is written"):
            train.train(config)
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("keep")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    for name in (".resume.pt.tmp", "resume.pt"):
        (folder.path / name).symlink_to(victim)
    replace_file(folder.resume, "new")
    assert folder.resume.read_text() == "new"
    (folder.path / "lock").symlink_to(victim)
    with pytest.raises(errors.RunFolderError, match="lock is not a regular file; remove it"):
        folder._take()
    (folder.path / "lock").unlink()
    os.mkfifo(folder.path / "lock")
    with pytest.raises(errors.RunFolderError, match="lock is not a regular file; remove it"):
        folder._take()
    assert victim.read_text() == "keep"


def make_tree(root: Path, split: str, names: str) -> None:
    for name in names:
        (root / split / name).mkdir(parents=True)
        for number in range(2):
            Image.effect_noise((9, 9), 50 + 9 * number).save(root / split / name / f"{number}.png")


def test_classes_are_those_of_the_training(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    """Other names are refused, some of them have their labels; a dangling link is skipped to the end."""
    for split in ("train", "val"):
        make_tree(tmp_path / "own", split, "abc")
    (tmp_path / "own/train/b/2.png").symlink_to("nowhere")
    config = make_config(
        *("data=imagefolder", f"data.root={tmp_path}/own", "data.fraction=1", "data.image_size=32", "recipe.steps=2"),
        *("recipe.batch_size=7", "recipe.schedule.warmup_steps=0", "data.broken=skip", "recipe.eval_batch_size=2"),
    )
    train.train(config)
    assert json.loads(Path(str(config.run), "result.json").read_text())["counts"]["skipped"] >= 1
    make_tree(tmp_path / "other", "val", "abx")
    with pytest.raises(errors.WeightsError, match=r"1 of 3 classes of val are not among the 3 .*'x' for one"):
        evaluation.evaluate(config_of_run([f"run={config.run}", f"data.root={tmp_path}/other"]))
    for name in "bc":
        make_tree(tmp_path / "some", "val", name)
    capsys.readouterr()
    evaluation.evaluate(config_of_run([f"run={config.run}", f"data.root={tmp_path}/some"]))
    assert "val/samples 4" in capsys.readouterr().out.replace("4.0", "4")
    from drconv.tasks.classification.data import build_dataset

    some = config_of_run([f"run={config.run}", f"data.root={tmp_path}/some"])
    dataset = build_dataset(some.data, "val")
    dataset.relabel(["a", "b", "c"])
    assert [dataset[(index, 0)]["label"] for index in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("overrides", "num_steps", "problem", "warning"),
    [
        (["recipe.schedule.warmup_steps=50"], 22, "warmup_steps=50 must be below the run's 22 steps", ""),
        (["recipe.schedule.warmup_steps=21"], 22, "", ""),
        (["recipe.schedule.name=multistep", "recipe.schedule.milestones=[5,40]"], 40, "", r"\[40\] lie at or behind"),
    ],
)
def test_the_length_in_epochs_is_checked(
    make_config: Make, overrides: list[str], num_steps: int, problem: str, warning: str
) -> None:
    config = make_config("recipe.steps=null", "recipe.epochs=1", *overrides)
    problems, warnings = list(length_problems(config, num_steps)), list(length_warnings(config, num_steps))
    assert len(problems) == bool(problem)
    assert problem in "".join(problems)
    assert len(warnings) == bool(warning)
    config.recipe.epochs = 0.01
    if problem:
        with pytest.raises(errors.ConfigError, match="must be below the run's 1 steps"):
            train.train(config)


def test_a_short_run_gives_a_hint(make_config: Make, capsys: pytest.CaptureFixture) -> None:
    train.train(make_config("recipe.steps=2", "recipe.schedule.warmup_steps=0"))
    assert "hint: in 2 steps the running averages of batch norms lag" in capsys.readouterr().out
    train.train(
        make_config("recipe.steps=2", "recipe.schedule.warmup_steps=0", "recipe.bn_reestimation_steps=1", run="b")
    )
    assert "hint: in" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "devices", "expected"),
    [
        ({}, 2, (False, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, 2, (False, 2)),  # as schedulers set it for every job
        ({"RANK": "0", "WORLD_SIZE": "1"}, 1, (True, 1)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 1, (True, 4)),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 2, (True, 4)),
        ({"WORLD_SIZE": "4"}, 2, (False, 2)),
        ({"RANK": "1", "WORLD_SIZE": "4"}, 3, "leave runtime.devices out"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, 1, "not below WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, 1, "no number of a rank"),
    ],
)
def test_the_environment_and_the_devices(
    make_config: Make, environment: dict[str, str], devices: int, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    config.runtime.devices = devices
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, str):
        with pytest.raises(errors.ConfigError, match=expected):
            num_ranks(config)
        with pytest.raises(errors.ConfigError, match=expected):
            validate(config)
    else:
        assert (is_started_elsewhere(config), num_ranks(config)) == expected


def test_a_reader_that_is_gone_ends_nothing() -> None:
    code = (
        "import sys; from drconv.console import outlast_readers; outlast_readers()\n"
        "for _ in range(99999): print('x' * 99)\n"
        "sys.exit(7)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 7


def test_other_errors_of_the_output_are_errors(tmp_path: Path) -> None:
    stream = (tmp_path / "x").open("w")
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        LastingOutput(stream).write("x")


def test_more_ranks_than_validation_pictures(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank without one batch still takes part in what all do together."""
    from drconv.engine import dry_run

    seen: list[int] = []
    monkeypatch.setattr(dry_run, "evaluate", lambda task, name, dataset, batches, *_: seen.append(len(list(batches))))
    evaluation_set = type("Set", (), {"name": "val", "batches": [], "dataset": [0]})()
    state = type("State", (), {"task": None})()
    dry_run._timed_evaluation(make_config(), state, evaluation_set, torch.device("cpu"))
    assert seen == [0, 0]


def test_a_killed_loader_process_is_one_line(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the line of a stop, where one was asked for while a long batch was made."""
    config = make_config("runtime.workers=1")

    def received(signals: StopSignals) -> StopSignals:
        signals.received = signal.Signals.SIGTERM
        return signals

    monkeypatch.setattr("drconv.engine.signals.StopSignals.should_stop", lambda signals: False)

    def kill(trainer: Trainer) -> None:
        import multiprocessing

        for child in multiprocessing.active_children():
            child.kill()

    step = Trainer._step

    def step_and_kill(self: Trainer, batches: object) -> None:
        kill(self)
        step(self, batches)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_step", step_and_kill)
        with pytest.raises((RuntimeError, errors.DataError)) as caught:
            train.train(config)
        assert "the same command continues" in str(one_line(caught.value))
        assert "\n" not in str(one_line(caught.value))
        monkeypatch.setattr("drconv.engine.signals.StopSignals.__enter__", received)
        with pytest.raises(errors.StoppedError, match="stopped by SIGTERM while waiting for a batch"):
            train.train(config)
