"""The status of runs: read from folders as real runs leave them, with a lock that another process holds."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train
from drconv.commands import status
from drconv.config import Config
from drconv.errors import NonFiniteLossError, StoppedError
from drconv.run_status import RunStatus, find_runs, is_owned, note_end, note_start, read_status
from drconv.tasks.classification import Classification
from tests.conftest import ROOT

Make = Callable[..., Config]
HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose lock another process holds, at step 40 of 100."""
    folder = tmp_path / "held"
    folder.mkdir()
    (folder / "config.yaml").touch()
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", HOLD, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    note_start(folder, num_steps=100, batch_size=32, every=20, headline="val/top1")
    entries = [
        {"step": 20, "split": "train", "loss": 2.0, "images_per_second": 10.0},
        {"step": 20, "split": "val", "top1": 33.3, "top5": 60.0},
        {"step": 20, "split": "val_ema", "top1": 44.0},
        {"step": 40, "split": "train", "loss": 1.5, "images_per_second": 64.0, "regions": {"x": ["y" * 30_000]}},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries) + '{"step": 4')
    yield folder
    process.communicate(b"")


def test_a_run_that_computes(held: Path) -> None:
    found = read_status(held)
    assert (found.state, found.step, found.num_steps, found.speed, found.loss) == ("running", 40, 100, 64.0, 1.5)
    assert found.metric == "val/top1 33.3"
    assert found.seconds_left == pytest.approx(60 * 32 / 64)
    assert is_owned(held)


def test_a_run_that_wrote_nothing_for_long_is_stalled(held: Path) -> None:
    before = time.time() - 3600
    for path in held.iterdir():
        os.utime(path, (before, before))
    found = read_status(held)
    assert found.state == "stalled"
    assert status.row(found)[5].startswith("silent for 1:00:0")


def test_asking_takes_no_lock(held: Path, tmp_path: Path) -> None:
    (free := tmp_path / "free").mkdir()
    (free / "lock").touch()
    assert not is_owned(free)
    code = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    assert subprocess.run([sys.executable, "-S", "-c", code, str(free / "lock")]).returncode == 0
    assert not is_owned(tmp_path / "nowhere")


def test_ends_of_real_runs(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("recipe.steps=4")
    folder = Path(str(config.run))
    seen: list[RunStatus] = []
    forward = Classification.forward

    def stop(self: Classification, batch: dict) -> object:
        seen.append(read_status(folder))
        if len(seen) == 3:
            raise StoppedError("stopped by hand")
        if len(seen) == 4:
            raise NonFiniteLossError("the loss is odd")
        return forward(self, batch)

    monkeypatch.setattr(Classification, "forward", stop)
    with pytest.raises(StoppedError):
        train.train(config)
    assert seen[0].num_steps == 4
    found = read_status(folder)
    assert (found.state, found.reason, found.step) == ("stopped", "stopped by hand", 2)
    with pytest.raises(NonFiniteLossError):
        train.train(config)
    assert (read_status(folder).state, read_status(folder).reason) == ("failed", "the loss is odd")
    value = train.train(config)
    found = read_status(folder)
    assert (found.state, found.step, found.metric, found.reason) == ("finished", 4, f"val/top1 {value:.4g}", "")
    assert list(find_runs(folder.parent)) == [folder]


def test_a_killed_process_and_damaged_files(tmp_path: Path) -> None:
    note_start(tmp_path, 10, 4, 2, "val/top1")
    assert (read_status(tmp_path).state, read_status(tmp_path).reason) == ("stopped", "its process was killed")
    for name in ("status.json", "metrics.jsonl"):
        (tmp_path / name).write_bytes(b"\xff{[")
    assert read_status(tmp_path).state == "stopped"
    (tmp_path / "result.json").write_text("[]")
    assert read_status(tmp_path).reason == "result.json cannot be read"
    note_end(tmp_path / "gone", "failed", "x")


def test_the_table_and_the_exit_code(held: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").touch()
    note_start(tmp_path / "other", 10, 4, 2, "val/top1")
    note_end(tmp_path / "other", "failed", "the loss is odd")
    assert status.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "runs: 1 running, 1 failed"
    assert re.split(r" {2,}", lines[2]) == ["running", "40/100", "64", "1.5", "val/top1 33.3", "0:00:30", str(held)]
    assert lines[4].strip() == "the loss is odd"
    assert status.main([str(tmp_path / "nothing")]) == 1


def test_it_is_fast_since_it_loads_neither_torch_nor_hydra() -> None:
    code = "import sys, drconv.commands.status; sys.exit(bool({'torch', 'hydra'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
