"""A task from outside the package, as docs/design.md shows it, trains, stops, resumes, and is evaluated."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import eval as evaluation
import train
from drconv.compose import config_of_run
from drconv.config import Config, TaskConfig
from drconv.engine.trainer import Trainer
from drconv.errors import ConfigError, InterruptedRunError
from drconv.files import file_hash
from drconv.tasks import TASKS, find_task

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples" / "own_task"
BASE = [
    *("model=shufflenetv2_0.25x", "task.name=brightness", "task.module=brightness", "recipe.epochs=null"),
    *("recipe.steps=6", "recipe.batch_size=16", "recipe.schedule.warmup_steps=0", "recipe.optimizer.lr=0.01"),
    *("recipe.schedule.name=constant", "logging.every=2", "logging.checkpoint_every=2", "logging.wandb=disabled"),
    *("runtime.workers=0", "runtime.device=cpu", "task.classification.label_smoothing=0"),
]
REGISTER = (
    "from drconv.tasks import *\n"
    "register_task({0!r}, TaskEntry({1!r}, 'Own', Headline({2!r}, 'error', ''), ('val/error',)))\n"
)


@pytest.fixture(autouse=True)
def _own_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr("drconv.tasks.registry.TASKS", TASKS)  # put back afterwards, without the task
    monkeypatch.setitem(TASKS, "brightness", None)
    monkeypatch.delitem(TASKS, "brightness")
    monkeypatch.delitem(sys.modules, "brightness", raising=False)


def test_it_trains_resumes_and_is_evaluated(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = (make_config(base=BASE, run=name) for name in ("whole", "parts"))
    error = train.train(whole)
    record = json.loads(Path(whole.run, "result.json").read_text())
    assert record["metrics"] == {"val/error": error}
    assert record["data"] == {"train": {"pictures": 256, "noise": 0.1}, "val": {"pictures": 64, "noise": 0.1}}
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == 3:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    with pytest.raises(InterruptedRunError):
        train.train(parts)
    monkeypatch.setattr(Trainer, "_step", step)
    assert train.train(parts) == error
    assert "continues at step 2 of 6" in capsys.readouterr().out
    assert file_hash(Path(whole.run, "model.safetensors")) == file_hash(Path(parts.run, "model.safetensors"))
    with pytest.raises(ConfigError, match=r"a stored configuration starts no code: add task\.module=brightness"):
        config_of_run([f"run={whole.run}"])
    again = config_of_run([f"run={whole.run}", "task.module=brightness"])
    assert again is not None
    assert evaluation.evaluate(again) == error
    assert "val/error is equal to the training's record" in capsys.readouterr().out


def test_its_options_are_its_own(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match="brightness takes noise, a number"):
        train.train(make_config("task.options={nois: 0.2}", base=BASE))


def test_a_task_that_nobody_registered(make_config: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"task\.name=classificaton is not known; did you mean classification"):
        make_config("task.name=classificaton")
    with pytest.raises(ConfigError, match=r"task\.module=nowhere cannot be imported"):
        make_config("task.name=depth", "task.module=nowhere")
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 has no effect under task\.name=brightness"):
        make_config("task.classification.label_smoothing=0.1", base=BASE)
    with pytest.raises(ConfigError, match=r"experiment\.metric=top_1 is no metric of task\.name=classification"):
        make_config("experiment.metric=top_1")


def test_the_page_shows_it() -> None:
    page = (ROOT / "docs" / "design.md").read_text()
    example = (FOLDER / "brightness.py").read_text()
    assert "examples/own_task/brightness.py" in page
    assert example.split('"""')[1].strip().splitlines()[-2].strip() in page


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("raise RuntimeError('boom')", r"cannot be imported \(RuntimeError: boom in strange\.py, line 1\)"),
        ("import sys\nsys.exit(0)", r"cannot be imported \(SystemExit: 0 in strange\.py, line 2\)"),
        ("def (:", r"cannot be imported \(SyntaxError"),
        ("", "is not known, and strange does not register it"),
        (
            REGISTER.format("classification", "strange", "val/error"),
            "a task named classification is registered already",
        ),
        (REGISTER.format("strange", "strange", "error"), "the headline 'error' of the task strange has to be <eval"),
        (REGISTER.format("strange", "strange", "val/e"), "one of its metrics val/error"),
        (REGISTER.format("strange", "nowhere", "val/error"), "registered as Own of nowhere, which cannot be imported"),
        (REGISTER.format("strange", "strange", "val/error"), "registered as Own of strange, which has no such class"),
        (
            REGISTER.format("strange", "strange", "val/error")
            + "from drconv.interfaces import Task\nclass Own(Task): pass",
            "which lacks evaluate, evaluation_sets, forward, new_metric, train_set",
        ),
    ],
)
def test_a_module_that_gives_no_task(
    code: str, finding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_config: Callable[..., Config]
) -> None:
    (tmp_path / "strange.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    monkeypatch.setitem(TASKS, "strange", None)
    monkeypatch.delitem(TASKS, "strange")
    name = "classification" if "task('classification" in code else "strange"
    with pytest.raises(ConfigError, match=finding):
        find_task(TaskConfig(name=name, module="strange"))
    sys.modules.pop("strange", None)


def test_the_record_outlives_a_cost_that_fails(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a learning rate of 0 for all parameters, whose logged rate is the recipe's."""
    monkeypatch.setattr("drconv.interfaces.count_cost", lambda *arguments: 1 / 0)
    config = make_config("recipe.optimizer.groups=[{match: '*', lr: 0.0}]", base=BASE, run="own")
    train.train(config)
    assert "cost() of the task failed (ZeroDivisionError" in capsys.readouterr().out
    record = json.loads(Path(config.run, "result.json").read_text())
    assert record["cost"] is None
    assert record["train"]["lr"] == 0.01


def test_a_headline_that_no_set_computes(make_config: Callable[..., Config]) -> None:
    config = make_config(base=BASE, run="own")
    entry = TASKS["brightness"]
    TASKS["brightness"] = replace(entry, headline=replace(entry.headline, metric="test/error"))
    with pytest.raises(ConfigError, match="test/error, which the run is for, is never computed"):
        train.train(config)
    assert not Path(config.run, "resume.pt").exists()
