"""The folder of a run: owned by one process, bound to one configuration, never overwritten; damage is one line."""

import json
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
from drconv.engine.run_folder import RunFolder
from drconv.engine.trainer import Trainer
from drconv.errors import InterruptedRunError

Make = Callable[..., Config]


def test_a_finished_run_is_kept(make_config: Make, capsys: pytest.CaptureFixture) -> None:
    config = make_config()
    first = train.train(config)
    record = Path(config.run, "result.json").read_bytes()
    assert train.train(config) == first
    assert "overwrite=true runs it again" in capsys.readouterr().out
    assert Path(config.run, "result.json").read_bytes() == record
    config.overwrite = True
    assert train.train(config) == first
    assert Path(f"{config.run}.old1", "result.json").read_bytes() == record


def test_a_folder_of_another_configuration_is_refused(make_config: Make) -> None:
    train.train(make_config())
    other = make_config("recipe.optimizer.lr=0.7", "seed=3")
    with pytest.raises(errors.RunFolderError, match="seed: 0 there, 3 here") as caught:
        train.train(other)
    assert "recipe.optimizer.lr: 0.1 there, 0.7 here" in str(caught.value)


def test_two_processes_cannot_own_a_folder(make_config: Make) -> None:
    config = make_config()
    Path(config.run).mkdir()
    code = (
        "import fcntl, sys; f = open(sys.argv[1] + '/lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX)\n"
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, config.run], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(errors.RunFolderError, match="another process is training"):
            train.train(config)
        other.stdin.close()
    train.train(config)


def test_a_damaged_resume_state_says_so(make_config: Make) -> None:
    config = make_config()
    Path(config.run).mkdir()
    torch.save({"state": {"step": 1}}, Path(config.run, "resume.pt"))
    with pytest.raises(errors.RunFolderError, match=r"resume.pt is damaged .* overwrite=true"):
        train.train(config)
    Path(config.run, "resume.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(errors.RunFolderError, match=r"resume.pt is damaged .* overwrite=true"):
        train.train(config)


def test_other_data_in_the_same_folder_are_refused(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    train.train(config)
    Path(config.run, "result.json").unlink()
    monkeypatch.setattr("drconv.tasks.classification.PictureDataset.fingerprint", lambda self: {"pictures": 1})
    with pytest.raises(errors.RunFolderError, match="the data differ"):
        train.train(config)
    config.overwrite = True
    train.train(config)
    assert Path(f"{config.run}.old1", "resume.pt").exists()
    assert Path(config.run, "result.json").exists()


def test_overwrite_continues_what_is_not_finished(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = make_config("overwrite=true")
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == 3:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    with pytest.raises(InterruptedRunError):
        train.train(config)
    monkeypatch.undo()
    train.train(config)
    assert "continues at step 2 of 6" in capsys.readouterr().out
    assert not Path(f"{config.run}.old1").exists()
    Path(config.run, "result.json").unlink()
    for name in ("resume.pt", "resume.previous.pt"):  # with one of them whole the run would go on
        Path(config.run, name).write_bytes(b"cut")
    train.train(config)
    assert Path(f"{config.run}.old1", "resume.pt").read_bytes() == b"cut"


def test_a_folder_without_a_state_takes_the_corrected_configuration(
    make_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise errors.ConfigError("x")

    monkeypatch.setattr("drconv.tasks.classification.task.build_dataset", fail)
    with pytest.raises(errors.ConfigError):
        train.train(make_config("recipe.optimizer.lr=0.7"))
    monkeypatch.undo()
    config = make_config("recipe.steps=2", "recipe.schedule.warmup_steps=0")
    train.train(config)
    assert config_of_run([f"run={config.run}"]).recipe.steps == 2


def test_damaged_files_of_a_finished_run_say_so(make_config: Make) -> None:
    config = make_config("recipe.steps=2", "recipe.schedule.warmup_steps=0")
    train.train(config)
    again = config_of_run([f"run={config.run}"])
    Path(config.run, "model.safetensors").unlink()
    with pytest.raises(errors.WeightsError, match=r"model.safetensors is missing; .*overwrite=true"):
        evaluation.evaluate(again)
    for content in ("{cut", "[]", json.dumps({"metrics": {}})):
        Path(config.run, "result.json").write_text(content)
        for function in (train.train, evaluation.evaluate):
            with pytest.raises(errors.RunFolderError, match=r"result.json is damaged .*overwrite=true"):
                function(again)


def test_a_folder_renamed_under_the_lock_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process sets the folder aside between the opening of the lock file and its locking."""
    import fcntl

    lockf, path = fcntl.lockf, tmp_path / "run"

    def rename_then_lock(*arguments: object) -> None:
        if not (tmp_path / "aside").exists():
            path.rename(tmp_path / "aside")
        lockf(*arguments)

    monkeypatch.setattr("drconv.engine.run_folder.fcntl.lockf", rename_then_lock)
    folder = RunFolder(path)
    folder._take()
    assert (path / "lock").exists()
    assert folder._holds_the_path()
    folder.close()


def test_skipped_pictures_are_counted(make_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One broken picture of four in training, seen once in each of two epochs, and one of four in validation."""
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (9, 9)).save(tmp_path / split / name / f"{number}.png")
        (tmp_path / split / "b/1.png").write_bytes(b"broken")
    config = make_config(
        *("data=imagefolder", f"data.root={tmp_path}", "data.broken=skip", "data.fraction=1", "data.image_size=32"),
        *("recipe.batch_size=4", "recipe.steps=2", "recipe.schedule.warmup_steps=0", "runtime.accumulate=2"),
    )
    train.train(config)
    result = json.loads(Path(config.run, "result.json").read_text())
    assert result["counts"] == {"skipped": 2}
    assert (result["metrics"]["val/samples"], result["metrics"]["val/skipped"]) == (3, 1)
    assert "skipped: cannot decode" in caplog.text
    assert "data.broken=skip" not in caplog.text
