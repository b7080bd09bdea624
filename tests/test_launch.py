"""How several ranks end: with the reason of the one that failed first, and with their parent. Starts no process."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from drconv.config import Config
from drconv.engine import launch
from drconv.engine.ranks import Ranks
from drconv.errors import ConfigError, InterruptedRunError, RankError
from drconv.run_status import note_end, note_start, read_status
from drconv.world import STORE


class Exit(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def fail_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Exception], None]:
    """``fail_on(1, error)``: rank 1 raises the error, and its process ends."""

    def leave(code: int) -> None:
        raise Exit

    monkeypatch.setenv(STORE, str(tmp_path / "store"))
    monkeypatch.setattr(launch.os, "_exit", leave)
    monkeypatch.setattr(launch, "_end_with_parent", lambda *arguments: None)

    def fail(rank: int, error: Exception) -> None:
        def worker(config: Config) -> Any:
            raise error

        with pytest.raises(Exit):
            launch._rank(worker, Config(), os.getppid(), rank)

    return fail


def test_the_rank_that_failed_first_is_told(fail_on: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Also where torch saw the end of another one first, which was a consequence."""
    fail_on(1, KeyError("labels"))
    fail_on(0, RuntimeError("Connection closed by peer [127.0.0.1]"))
    error = launch._first_failure(tmp_path, {0: 1})
    assert isinstance(error, RankError)
    assert str(error).startswith("rank 1 failed: KeyError: 'labels'; ")
    assert "\n" not in str(error)
    trace = capsys.readouterr().err
    assert trace.count("Traceback") == 1
    assert "KeyError: 'labels'" in trace


def test_an_error_of_a_user_keeps_its_kind_and_has_no_trace(
    fail_on: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fail_on(0, ConfigError("recipe.steps=3 is odd"))
    error = launch._first_failure(tmp_path, {0: 1})
    assert type(error) is ConfigError
    assert str(error) == "recipe.steps=3 is odd"
    assert capsys.readouterr().err == ""


def test_a_rank_that_was_killed_is_told(fail_on: Callable, tmp_path: Path) -> None:
    fail_on(0, RuntimeError("Connection closed by peer [127.0.0.1]"))
    assert "rank 1 was ended by SIGKILL" in str(launch._first_failure(tmp_path, {1: -9}))


def test_a_rank_that_leaves_nothing_is_told(tmp_path: Path) -> None:
    assert "rank 1 ended with code 3" in str(launch._first_failure(tmp_path, {1: 3}))


def test_reasons_are_read_by_the_clock(tmp_path: Path) -> None:
    for rank, at in ((0, 2.5), (1, 2.25), (10, 2.75)):
        reason = {"at": at, "kind": "ConfigError", "line": f"of {rank}", "error": "", "trace": ""}
        (tmp_path / launch.REASON.format(rank)).write_text(json.dumps(reason))
    assert str(launch._first_failure(tmp_path, {0: 1})) == "of 1"


def test_a_rank_ends_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its main thread waits for: the rank is a thread here, and its parent changes when it is killed."""
    parent, ended = [os.getppid()], threading.Event()
    private = tmp_path / "private"
    private.mkdir()
    monkeypatch.setattr(launch, "ORPHAN_S", 0.01)
    monkeypatch.setattr(launch.os, "getppid", lambda: parent[0])
    monkeypatch.setattr(launch.os, "_exit", lambda code: ended.set())
    watcher = threading.Thread(target=launch._end_with_parent, args=(parent[0], private), daemon=True)
    watcher.start()
    time.sleep(0.05)
    assert not ended.is_set()
    parent[0] = 1
    watcher.join(30)
    assert ended.is_set()
    assert not private.exists()


def test_a_rank_that_failed_stays_in_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its process ends: else the others would fail, and tell their reason, before it has told its own."""
    left: list[bool] = []
    monkeypatch.setattr("drconv.distributed.destroy_process_group", lambda: left.append(True))
    Ranks(Config()).leave(failed=True)
    assert not left
    Ranks(Config()).leave()
    assert left


def test_status_has_the_reason_of_the_rank_that_failed_first(tmp_path: Path) -> None:
    """Rank 0 noted its own end, a consequence; a run that computes or was stopped keeps what it has."""
    note_start(tmp_path, 10, 4, 5, "val/top1")
    (tmp_path / "config.yaml").touch()
    note_end(tmp_path, "failed", "rank 1 left the group")
    launch._note_failure(tmp_path, RankError("rank 1 failed: a shelf fell"))
    assert read_status(tmp_path).reason == "rank 1 failed: a shelf fell"
    note_end(tmp_path, "stopped", "by hand")
    launch._note_failure(tmp_path, RankError("another folder was meant"))
    assert read_status(tmp_path).reason == "by hand"


def test_ctrl_c_outside_of_the_steps_says_what_is_saved(make_config: Callable[..., Config]) -> None:
    def interrupted(config: Config) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedRunError, match="no state was saved yet, the same command begins again"):
        launch.launch(interrupted, make_config())
