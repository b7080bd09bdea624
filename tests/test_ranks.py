"""Several ranks on a CPU. Each test starts processes that import torch, so there are few."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
SHORT = [
    "model=drconv_shufflenetv2_0.25x",
    "recipe.epochs=null",
    "recipe.steps=4",
    "recipe.batch_size=16",
    "recipe.schedule.warmup_steps=0",
    "data.fraction=0.1",
    "logging.every=2",
    "logging.wandb=disabled",
    "runtime.workers=0",
    "runtime.device=cpu",
    "runtime.threads=1",
]


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_multirun_over_two_ranks_survives_a_failing_job(command: Callable, tmp_path: Path) -> None:
    """Three jobs of two ranks: the second cannot run (batch of 15 on two ranks), the others are right."""
    outcome = command(
        "train.py", "-m", *SHORT, "recipe.batch_size=16,15,8", "runtime.devices=2", "outputs=here", timeout=300
    )
    assert outcome.returncode == 1
    assert "recipe.batch_size=15" in outcome.stderr
    assert "divisible by devices=2" in outcome.stderr
    folders = sorted(path.parent for path in tmp_path.glob("here/**/result.json"))
    assert len(folders) == 2
    for folder in folders:
        result = result_of(folder)
        assert result["metrics"]["val/samples"] == 360  # each validation picture once, over both ranks
        assert result["hardware"]["num_devices"] == 2
        assert f"batch_size={result['config']['recipe']['batch_size']}" in folder.name


def test_torchrun_and_the_same_command_afterwards(command: Callable, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [str(ROOT / "train.py"), *SHORT, "run=ranks"]
    outcome = subprocess.run([*torchrun, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr[-2000:]
    assert result_of(tmp_path / "ranks")["metrics"]["val/samples"] == 360
    again = command("train.py", *SHORT, "run=ranks")
    assert again.returncode == 0
    assert "holds this run, finished" in again.stdout


def test_a_signal_to_the_group_of_two_ranks(tmp_path: Path) -> None:
    """Each rank gets it twice, with the group and from the launcher; the loader processes get it too."""
    arguments = [*SHORT, "recipe.steps=100000", "runtime.devices=2", "runtime.workers=1", "run=here"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, "logging.checkpoint_every=3", "logging.eval_every=4"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    state, deadline = tmp_path / "here" / "resume.pt", time.time() + 90
    while not state.exists() and time.time() < deadline:
        time.sleep(0.05)
    assert state.exists()
    assert listening(process.pid) == {"127.0.0.1"}  # and so nothing that others could write to
    sent = time.time()
    os.killpg(process.pid, signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 143, message
    step = torch.load(state, weights_only=True)["state"]["step"]
    assert state.stat().st_mtime > sent, message
    assert re.search(rf"error: stopped by SIGTERM; the saved state is that after step {step}; the same", message)


def listening(session: int) -> set[str]:
    """Addresses at which the processes of a session accept connections (IPv6 ones in hexadecimal)."""
    sockets = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if int((entry / "stat").read_text().rpartition(") ")[2].split()[3]) == session:
                sockets |= {os.readlink(link) for link in (entry / "fd").iterdir()}
        except OSError:
            continue
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            _, address, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                number = address.partition(":")[0]
                found.add(socket.inet_ntoa(bytes.fromhex(number)[::-1]) if len(number) == 8 else number)
    return found


def test_two_ranks_word_an_error_of_the_data(command: Callable, tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")):
        (tmp_path / split / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / split / name / "good.png")
    (tmp_path / "train/b/bad.png").write_bytes(b"broken")
    own = ["data=imagefolder", f"data.root={tmp_path}", "data.fraction=1", "data.image_size=32", "runtime.workers=1"]
    outcome = command("train.py", *SHORT, *own, "runtime.devices=2")
    assert outcome.returncode == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: cannot decode ")
    assert "Traceback" not in outcome.stderr


def test_multirun_under_torchrun_is_refused(command: Callable) -> None:
    outcome = command("train.py", "-m", *SHORT, "seed=0,1", RANK="0", WORLD_SIZE="2")
    assert outcome.returncode == 1
    assert "every rank its own sweep" in outcome.stderr


@pytest.mark.parametrize("script", ["train.py", "eval.py"])
def test_batch_and_devices_must_fit(command: Callable, script: str) -> None:
    outcome = command(script, *SHORT, "runtime.devices=3")
    assert outcome.returncode == 1
    assert "use 15 or change runtime.devices" in outcome.stderr
