"""Runs: stop and go on, folders, records, bad input. In one process where possible: importing torch is what costs."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import eval as evaluation
import train
from drconv import errors
from drconv.compose import as_yaml, config_of_run
from drconv.config import Config
from drconv.engine.signals import StopSignals
from drconv.engine.trainer import Trainer
from drconv.files import file_hash
from drconv.messages import one_line
from drconv.tasks.classification import Classification

ROOT = Path(__file__).parents[1]
TIMES = {"images_per_second", "data_wait", "memory_gib"}
Make = Callable[..., Config]


def entries(config: Config) -> list[dict]:
    """The log without its clock readings."""
    lines = Path(config.run, "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def assert_same_run(one: Config, other: Config) -> None:
    """Bitwise: weights, averaged weights, BN statistics, optimiser state and metrics."""
    for name in ("model.safetensors", "model_ema.safetensors"):
        a, b = load_file(Path(one.run, name)), load_file(Path(other.run, name))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)
        assert any("running_mean" in key for key in a)
    states = [
        torch.load(Path(c.run, "resume.pt"), weights_only=True)["state"]["optimizer"]["state"] for c in (one, other)
    ]
    assert all(torch.equal(states[0][i]["momentum_buffer"], states[1][i]["momentum_buffer"]) for i in states[0])
    assert entries(one) == entries(other)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_a_run_that_was_killed_ends_bitwise_equal(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Stopped inside an epoch and between two saved states; continued with another number of loader processes."""
    options = ("recipe.ema_decay=0.9", "recipe.steps=7", "logging.eval_every=3", "model.dropout=0.5")
    whole, parts = make_config(*options, run="whole"), make_config(*options, run="parts")
    train.train(whole)
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == 5:
            raise Killed
        step(self, batches)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    with pytest.raises(Killed):
        train.train(parts)
    monkeypatch.undo()
    parts.runtime.workers = 2
    train.train(parts)
    assert "continues at step 4 of 7" in capsys.readouterr().out
    assert_same_run(whole, parts)


def test_sigkill_and_the_same_command(make_config: Make, capsys: pytest.CaptureFixture) -> None:
    options = ["recipe.ema_decay=0.9", "recipe.steps=12"]
    whole = make_config(*options, run="whole")
    train.train(whole)
    killed = make_config(*options, run="killed")
    code = "import sys, train; from drconv.compose import config_of_run; train.train(config_of_run([sys.argv[1]]))"
    Path(killed.run).mkdir()
    Path(killed.run, "config.yaml").write_text(Path(whole.run, "config.yaml").read_text())
    process = subprocess.Popen([sys.executable, "-c", code, f"run={killed.run}"], cwd=ROOT, stdout=subprocess.DEVNULL)
    wait_for(Path(killed.run, "resume.pt"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(Path(killed.run, "resume.pt"), weights_only=True)["state"]["step"]
    train.train(killed)
    assert f"continues at step {step} of 12" in capsys.readouterr().out
    assert_same_run(whole, killed)


def test_sigterm_saves_first(make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    options = ("recipe.ema_decay=0.9", "logging.checkpoint_every=100")
    whole, parts = make_config(*options, run="whole"), make_config(*options, run="parts")
    train.train(whole)
    step = Trainer._step

    def step_with_signal(self: Trainer, batches: object) -> None:
        step(self, batches)
        if self.state.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # a repeat within seconds is the same request

    monkeypatch.setattr(Trainer, "_step", step_with_signal)
    with pytest.raises(errors.StoppedError, match="stopped by SIGTERM after step 3; the same command continues"):
        train.train(parts)
    monkeypatch.undo()
    assert torch.load(Path(parts.run, "resume.pt"), weights_only=True)["state"]["step"] == 3
    train.train(parts)
    assert "continues at step 3 of 6" in capsys.readouterr().out
    assert_same_run(whole, parts)


@pytest.mark.parametrize("evaluations", [2, 3])
def test_sigterm_inside_an_evaluation(make_config: Make, monkeypatch: pytest.MonkeyPatch, evaluations: int) -> None:
    """The second is that of step 4, the third the final one; an evaluation that was cut short is made again."""
    options = ("recipe.ema_decay=0.9", "logging.eval_every=2", "logging.checkpoint_every=100")
    whole, parts = make_config(*options, run="whole"), make_config(*options, run="parts")
    train.train(whole)
    evaluate, seen = Classification.evaluate, []

    def evaluate_with_signal(self: Classification, batch: dict, metric: object) -> None:
        evaluate(self, batch, metric)
        seen.append(batch)
        if len(seen) == 4 * (evaluations - 1) + 3:  # 2 batches and 2 sets of weights; the averaged weights' first
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Classification, "evaluate", evaluate_with_signal)
    with pytest.raises(errors.StoppedError, match=f"after step {2 * evaluations}"):
        train.train(parts)
    monkeypatch.undo()
    assert len(seen) == 4 * (evaluations - 1) + 3
    train.train(parts)
    assert_same_run(whole, parts)


def test_sigterm_inside_the_reestimation(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("recipe.ema_decay=0.9", "recipe.bn_reestimation_steps=4")
    whole, parts = make_config(*options, run="whole"), make_config(*options, run="parts")
    train.train(whole)
    forward, seen = Classification.forward, []

    def forward_with_signal(self: Classification, batch: dict) -> dict:
        seen.append(batch)
        if len(seen) == 6 + 2:  # 6 steps of training, then the second batch of the re-estimation
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(Classification, "forward", forward_with_signal)
    with pytest.raises(errors.StoppedError, match="after step 6"):
        train.train(parts)
    monkeypatch.undo()
    assert len(seen) == 6 + 2
    train.train(parts)
    assert_same_run(whole, parts)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, which Python then leaves so."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("_interruptible")
def test_a_later_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopSignals(torch.device("cpu")) as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.should_stop()
        monkeypatch.setattr("drconv.engine.signals.REPEAT_S", 0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_to_the_whole_process_group(make_config: Make) -> None:
    """What a cluster does; the loader processes must not die before the state is saved."""
    config = make_config(
        "recipe.steps=100000", "runtime.workers=2", "logging.checkpoint_every=3", "logging.eval_every=2"
    )
    Path(config.run).mkdir()
    Path(config.run, "config.yaml").write_text(as_yaml(config))
    code = (
        "import sys, train; from drconv.compose import config_of_run; from drconv.messages import exit_with\n"
        "try: train.train(config_of_run([sys.argv[1]]))\n"
        "except Exception as error: exit_with(error)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, f"run={config.run}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(Path(config.run, "resume.pt"))
    os.killpg(process.pid, signal.SIGTERM)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 143, message
    assert "stopped by SIGTERM after step" in message
    assert torch.load(Path(config.run, "resume.pt"), weights_only=True)["state"]["step"] >= 3


def wait_for(path: Path) -> None:
    deadline = time.time() + 60
    while not path.exists() and time.time() < deadline:
        time.sleep(0.01)
    assert path.exists()


def test_a_loss_that_is_not_finite_stops_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    monkeypatch.setattr("drconv.engine.step.lr_factor", lambda *_: 1e31)
    with pytest.raises(errors.NonFiniteLossError, match=r"not finite at step [12]; no state"):
        train.train(config)
    assert not Path(config.run, "resume.pt").exists()


def test_the_last_good_state_survives(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    monkeypatch.setattr("drconv.engine.step.lr_factor", lambda step, *_: 1.0 if step < 2 else 1e35)
    with pytest.raises(errors.NonFiniteLossError, match="last good state is kept"):
        train.train(config)
    assert torch.load(Path(config.run, "resume.pt"), weights_only=True)["state"]["step"] == 2


def test_a_full_disk_leaves_the_former_state(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system refuses to write: a file size limit stands for the disk's end."""
    config = make_config("logging.wandb=disabled")
    save, limits = Trainer.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_full_disk(self: Trainer) -> None:
        if self.state.step > 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        save(self)

    monkeypatch.setattr(Trainer, "save", save_on_full_disk)
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            train.train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "check outputs, run and data.root" in str(one_line(caught.value))
    monkeypatch.undo()
    assert torch.load(Path(config.run, "resume.pt"), weights_only=True)["state"]["step"] == 2
    assert not list(Path(config.run).glob(".*.tmp"))
    train.train(config)


def test_a_state_that_just_went_bad_is_not_saved(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of the step is finite, its update is not: the former state must stay, and no record be written."""
    config = make_config("logging.checkpoint_every=3")
    monkeypatch.setattr("drconv.engine.step.lr_factor", lambda step, *_: 1.0 if step < 5 else float("nan"))
    with pytest.raises(errors.NonFiniteLossError, match="parameter is not finite after step 6; the last good state"):
        train.train(config)
    assert torch.load(Path(config.run, "resume.pt"), weights_only=True)["state"]["step"] == 3
    assert not Path(config.run, "result.json").exists()


def test_a_stop_in_the_final_evaluation(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("recipe.ema_decay=0.9",)
    whole, parts = make_config(*options, run="whole"), make_config(*options, run="parts")
    train.train(whole)

    def die(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("drconv.engine.run.save_weights", die)
    with pytest.raises(Killed):
        train.train(parts)
    monkeypatch.undo()
    train.train(parts)
    assert_same_run(whole, parts)
    results = [json.loads(Path(c.run, "result.json").read_text()) for c in (whole, parts)]
    assert results[0]["train"]["loss"] == results[1]["train"]["loss"]


def test_evaluation_gives_the_recorded_metric_to_the_last_digit(
    make_config: Make, capsys: pytest.CaptureFixture
) -> None:
    config = make_config("recipe.ema_decay=0.9")
    train.train(config)
    result = json.loads(Path(config.run, "result.json").read_text())
    again = config_of_run([f"run={config.run}", "recipe.eval_batch_size=7", "runtime.workers=1"])
    capsys.readouterr()
    assert evaluation.evaluate(again) == result["metrics"]["val/top1"]
    assert "is equal to the training's record" in capsys.readouterr().out
    exact = config_of_run([f"run={config.run}"])
    evaluation.evaluate(exact)
    record = json.loads(Path(config.run, "model_ema.eval.json").read_text())
    assert record["metrics"] == result["metrics"]
    free = make_config(f"weights={config.run}/model_ema.safetensors", run="elsewhere")
    assert evaluation.evaluate(free) == result["metrics"]["val/top1"]


def test_wrong_weights_say_what_is_wrong(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    train.train(config)
    tensors = load_file(Path(config.run, "model.safetensors"))
    tensors["surplus"] = torch.zeros(1)
    missing = next(key for key in tensors if key.endswith("running_var"))
    del tensors[missing]
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(errors.WeightsError, match=rf"missing {missing}.*unexpected surplus"):
        evaluation.evaluate(make_config(f"weights={tmp_path}/other.safetensors", run="elsewhere"))
    (tmp_path / "cut.safetensors").write_bytes(Path(config.run, "model.safetensors").read_bytes()[:5000])
    with pytest.raises(errors.WeightsError, match="cannot be read"):
        evaluation.evaluate(make_config(f"weights={tmp_path}/cut.safetensors", run="elsewhere"))
    Path(config.run, "model.safetensors").write_bytes((tmp_path / "other.safetensors").read_bytes())
    with pytest.raises(errors.WeightsError, match="sha256 differs"):
        evaluation.evaluate(config_of_run([f"run={config.run}"]))


def test_the_record_is_whole(make_config: Make) -> None:
    config = make_config("logging.eval_every=2")
    value = train.train(config)
    result = json.loads(Path(config.run, "result.json").read_text())
    assert result["status"] == "complete"
    assert result["metrics"]["val/top1"] == value
    assert (result["seed"], result["steps"]) == (0, 6)
    assert result["metrics"]["val/samples"] == 360
    assert result["weights_sha256"]["last"] == file_hash(Path(config.run, "model.safetensors"))
    assert {"commit", "dirty"} == set(result["code"])
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert result["data"]["train"] != result["data"]["val"]
    assert result["config"]["recipe"]["steps"] == 6
    log = entries(config)
    assert [e["step"] for e in log if e["split"] == "train"] == [2, 4, 6]
    assert [e["step"] for e in log if e["split"] == "val"] == [2, 4, 6]
    regions = log[0]["regions"]
    assert regions
    usages = [statistics["usage"] for statistics in regions.values() if "usage" in statistics]
    assert len(usages) == 16
    assert all(sum(usage) == pytest.approx(1, abs=1e-5) for usage in usages)
    assert all(e["gradients"].keys() == {"guide", "generator", "filters", "rest"} for e in log if e["split"] == "train")
    assert all(norm > 0 for norm in log[0]["gradients"].values())


def test_wandb_offline_and_broken(
    make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = make_config("logging.wandb=offline", "recipe.steps=3", run="mirrored")
    train.train(config)
    assert list(Path(config.run).glob("wandb/offline-run-*/*.wandb"))
    monkeypatch.setitem(sys.modules, "wandb", None)  # import wandb now fails
    train.train(make_config("logging.wandb=offline", "recipe.steps=3", run="broken"))
    assert "warning: W&B is off for this run" in capsys.readouterr().out


def test_training_starts_from_given_weights(make_config: Make) -> None:
    config = make_config()
    train.train(config)
    tuned = make_config(f"weights={config.run}/model.safetensors", "recipe.optimizer.lr=0", run="tuned")
    value = train.train(tuned)
    assert evaluation.evaluate(config_of_run([f"run={tuned.run}"])) == value
    a, b = (load_file(Path(c.run, "model.safetensors")) for c in (config, tuned))
    assert all(torch.equal(a[key], b[key]) for key in a if "running" not in key and "num_batches" not in key)
