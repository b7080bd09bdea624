"""What was stored under former keys reads as today's: records, configurations, resume states, commands."""

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import train
from drconv import migrations
from drconv.compose import as_yaml, load_config
from drconv.config import Config
from drconv.engine.run_folder import RunFolder
from drconv.engine.trainer import Trainer
from drconv.errors import InterruptedRunError, RunFolderError
from drconv.files import file_hash
from drconv.identity import config_hash, select_binding
from drconv.results.read_records import read_record

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "results" / "runs").glob("*.json"))
OLD = [path for path in RECORDS if "schema" not in json.loads(path.read_text())]


def test_records_from_before_keep_their_numbers() -> None:
    assert len(OLD) > 100
    for path in random.Random(0).sample(OLD, 20):
        stored, record = json.loads(path.read_text()), read_record(path)
        assert record.value == stored["metrics"]["top1"]
        assert record.content["metrics"] == {f"val/{name}": value for name, value in stored["metrics"].items()}
        config = record.content["config"]
        assert config["task"]["classification"]["label_smoothing"] == stored["config"]["recipe"]["label_smoothing"]
        assert "label_smoothing" not in config["recipe"]
        OmegaConf.merge(OmegaConf.structured(Config), config)  # every key has its place in today's schema


def test_a_key_that_moves_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that somebody will add, on a record that is there."""
    next_schema = migrations.SCHEMA + 1
    monkeypatch.setattr(migrations, "SCHEMA", next_schema)
    moved = (*migrations.MOVED, (next_schema, "recipe.batch_size", "data.batch_size"))
    monkeypatch.setattr(migrations, "MOVED", moved)
    stored = json.loads(OLD[0].read_text())
    for schema in (1, 2):
        config = migrations.migrate_config(stored["config"], schema)
        assert config["data"]["batch_size"] == stored["config"]["recipe"]["batch_size"]
    assert "batch_size" not in migrations.migrate_config({"recipe": {}}, next_schema - 1)["data"]
    assert migrations.migrate_config({"recipe": {"batch_size": 5}}, next_schema)["recipe"]["batch_size"] == 5


def test_a_command_as_it_was_typed_before() -> None:
    assert migrations.migrate_override("recipe.label_smoothing=0.2") == "task.classification.label_smoothing=0.2"
    assert migrations.migrate_override("recipe.task=classification") == "task.name=classification"
    assert migrations.migrate_override("experiment=small/inside/drconv") == "experiment=small/inside/drconv"
    assert migrations.migrate_override("-m") == "-m"


def test_an_unfinished_run_from_before_goes_on(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = make_config(run="whole"), make_config("logging.every=3", run="parts")
    train.train(whole)
    step = Trainer._step

    def step_or_die(self: Trainer, batches: object) -> None:
        if self.state.step == 4:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr(Trainer, "_step", step_or_die)
    with pytest.raises(InterruptedRunError):
        train.train(parts)
    monkeypatch.setattr(Trainer, "_step", step)
    write_as_before(Path(parts.run))
    assert load_config(Path(parts.run)).task.classification.label_smoothing == 0.1
    train.train(parts)
    assert "continues at step 4 of 6" in capsys.readouterr().out
    assert file_hash(Path(whole.run, "model.safetensors")) == file_hash(Path(parts.run, "model.safetensors"))


def write_as_before(folder: Path) -> None:
    """The folder as schema 1 had it."""
    saved = torch.load(folder / "resume.pt", weights_only=True)
    log = saved["log"]
    former: dict[str, Any] = {key: saved[key] for key in ("state", "data", "evaluation_due")}
    former |= {"interval": log["sums"], "interval_steps": log["steps"], "last_entry": log["last_entry"], "skipped": 0}
    torch.save(former, folder / "resume.pt")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config.pop("schema") == migrations.SCHEMA
    config["recipe"] |= {"label_smoothing": config["task"]["classification"]["label_smoothing"]}
    config["recipe"]["task"] = config.pop("task")["name"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_configurations_carry_their_schema(make_config: Callable[..., Config]) -> None:
    assert yaml.safe_load(as_yaml(make_config()))["schema"] == migrations.SCHEMA


def test_words_about_a_row_are_free_and_old_hashes_stay(make_config: Callable[..., Config]) -> None:
    """Tolerance and decisions were part of the hash up to schema 2: it is in the names of the records."""
    for path in RECORDS:
        stored = json.loads(path.read_text())
        assert config_hash(select_binding(stored["config"], stored.get("schema", 1))) == stored["config_hash"]
    first = make_config("experiment.tolerance=1", "experiment.decisions=[D1]")
    then = make_config("experiment.tolerance=2", "experiment.decisions=[]")
    assert select_binding(asdict(first)) == select_binding(asdict(then))
    folder = RunFolder(Path(first.run))
    folder.path.mkdir(parents=True)
    folder.resume.touch()
    former = {**asdict(first), "schema": 2}
    (folder.path / "config.yaml").write_text(yaml.safe_dump(former))
    folder.compare(then)
    then.recipe.optimizer.lr += 1
    with pytest.raises(RunFolderError, match="made with another configuration"):
        folder.compare(then)


@pytest.mark.parametrize("schema", [99, 0, -1, 2.5, "2", None, True])
def test_a_schema_that_is_none_of_ours(schema: Any, tmp_path: Path, make_config: Callable[..., Config]) -> None:
    finding = "later version" if schema == 99 else "is not a number from 1"
    for migrate in (migrations.migrate_resume, migrations.migrate_record):
        with pytest.raises(ValueError, match=finding):
            migrate({"schema": schema, "config": {}, "log": {}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**asdict(make_config()), "schema": schema}))
    with pytest.raises(RunFolderError, match=finding):
        load_config(tmp_path)
