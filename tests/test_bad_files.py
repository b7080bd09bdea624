"""Each bad file is used, or refused in one line that names it and the reason; none hangs, runs code or takes memory."""

import errno
import json
import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from drconv.compose import as_yaml, load_config
from drconv.config import Config
from drconv.data.decode import read_picture
from drconv.data.index import load_index, save_index, scan_class_folders
from drconv.engine.checkpoint import load_resume, previous_state, save_resume
from drconv.engine.metrics_log import MetricsLog
from drconv.engine.run_folder import RunFolder
from drconv.errors import DataError, RunFolderError, UserError, WeightsError, printable
from drconv.files import keep_copy, replace_file
from drconv.messages import one_line
from drconv.migrations import SCHEMA
from drconv.weights import load_weights, output_names, save_weights
from tests.corpus import USED, damages, write_pictures, write_weights

MEMORY = 700_000_000  # bytes that reading any of the pictures may take on top of the process's own
SECONDS = 60  # for all of them


def read_all(folder: Path, names: list[str], results: Connection) -> None:
    """In a process of its own, with limits on memory and time."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    signal.alarm(SECONDS)
    findings = {}
    for name in names:
        try:
            findings[name] = list(read_picture(folder / name).shape)
        except DataError as error:
            findings[name] = str(error)
    results.send(findings)


def test_pictures(tmp_path: Path) -> None:
    """The whole corpus; ``PATH`` leads to a Ghostscript that would leave a trace."""
    expected = write_pictures(tmp_path / "pictures")
    trace = tmp_path / "trace"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {trace}\n")
        (tmp_path / name).chmod(0o755)
    results, sending = multiprocessing.Pipe(duplex=False)
    arguments = (tmp_path / "pictures", list(expected), sending)
    process = multiprocessing.get_context("fork").Process(target=read_all, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        process.start()
    sending.close()
    findings = results.recv()
    process.join()
    assert process.exitcode == 0
    assert not trace.exists()
    for name, reason in expected.items():
        finding = findings[name]
        if reason == USED:
            assert isinstance(finding, list), finding
        else:
            assert isinstance(finding, str), f"{name} is used"
            assert printable(name) in finding
            assert "\n" not in finding
            assert re.search(reason, finding), finding
    assert findings["turned.jpg"] == [3, 24, 32]  # EXIF orientation is ignored


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_are_scaled(ending: str, tmp_path: Path) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{ending}")
    found = read_picture(tmp_path / f"ramp.{ending}").numpy()
    np.testing.assert_array_equal(found, np.broadcast_to(ramp // 256, (3, 256, 256)))


def test_a_limit_on_pixels(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=200).shape == (3, 10, 20)
    with pytest.raises(DataError, match=r"a\.png .20 x 10 pixels, and data\.max_pixels allows 199"):
        read_picture(tmp_path / "a.png", max_pixels=199)


def test_weights(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    trace = tmp_path / "trace"
    for path in write_weights(tmp_path / "weights", save(network.state_dict()), trace):
        with pytest.raises((WeightsError, OSError)) as caught:
            load_weights(path, network)
        line = one_line(caught.value)
        assert line is not None
        assert "\n" not in line
        assert str(path) in line
    assert not trace.exists()


def test_weights_are_the_same_bytes_and_know_their_classes(tmp_path: Path) -> None:
    network = nn.Linear(3, 2)
    names = ["b", "a\n\udcff"]
    for number in range(3):
        save_weights(tmp_path / f"{number}", network, {"steps": 3, "output_names": names})
        assert (tmp_path / f"{number}").read_bytes() == (tmp_path / "0").read_bytes()
    assert output_names(tmp_path / "0") == names
    (tmp_path / "old").write_bytes(save(network.state_dict()))
    assert output_names(tmp_path / "old") == []


STATE = {"step": 3, "elapsed_s": 1.0, "task": {"w": torch.arange(5000.0)}, "optimizer": {}, "scaler": {}, "ema": None}
LOG: dict[str, Any] = {"sums": {}, "steps": 0, "counts": {}, "totals": {}, "last_entry": {}}


def state(step: int) -> dict:
    return {"state": {**STATE, "step": step}, "data": {}, "log": LOG}


def test_a_damaged_state_is_noticed_and_the_one_before_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "resume.pt"
    cpu = torch.device("cpu")
    for step in (3, 6):
        save_resume(path, state(step))
    good, before = path.read_bytes(), previous_state(path).read_bytes()
    saved, warning = load_resume(path, cpu)
    assert (saved["state"]["step"], warning) == (6, None)
    bits = np.random.default_rng(0).integers(0, 8 * len(good), 50).tolist()
    flipped = [bytes([byte ^ 1 << bit % 8 if i == bit // 8 else byte for i, byte in enumerate(good)]) for bit in bits]
    for content in [*flipped, *damages(good).values()]:
        path.write_bytes(content)
        saved, warning = load_resume(path, cpu)
        assert saved["state"]["step"] == 3
        assert torch.equal(saved["state"]["task"]["w"], STATE["task"]["w"])
        assert "resume.pt is damaged" in str(warning)
        assert "\n" not in str(warning)
    path.unlink()
    assert load_resume(path, cpu)[0]["state"]["step"] == 3
    previous_state(path).write_bytes(before[: len(before) // 2])
    with pytest.raises(RunFolderError, match=r"resume.pt is damaged .*overwrite=true"):
        load_resume(path, cpu)


def test_states_without_a_checksum_are_read(tmp_path: Path) -> None:
    """Those of earlier versions: the archive's own sums are compared."""
    torch.save({"schema": SCHEMA, **state(4)}, tmp_path / "resume.pt")
    assert load_resume(tmp_path / "resume.pt", torch.device("cpu"))[0]["state"]["step"] == 4
    content = bytearray((tmp_path / "resume.pt").read_bytes())
    content[content.find(np.float32(1234).tobytes())] ^= 1
    (tmp_path / "resume.pt").write_bytes(content)
    with pytest.raises(RunFolderError, match="checksum"):
        load_resume(tmp_path / "resume.pt", torch.device("cpu"))


@pytest.mark.parametrize(
    "change",
    [{"log": {}}, {"log": []}, {"commits": "x"}, {"state": STATE | {"step": 4, "elapsed_s": "x"}}, {"schema": 99}],
)
def test_states_of_another_kind_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"schema": SCHEMA, **state(4), **change}, tmp_path / "resume.pt")
    with pytest.raises(RunFolderError, match=r"of another kind|a later version wrote it"):
        load_resume(tmp_path / "resume.pt", torch.device("cpu"))


def test_a_copy_is_kept_again_and_again(tmp_path: Path) -> None:
    """Also where the last save failed, so that both names are of one file."""
    path = tmp_path / "resume.pt"
    keep_copy(path, previous_state(path))
    path.write_text("1")
    for _ in range(2):
        keep_copy(path, previous_state(path))
        assert sorted(file.name for file in tmp_path.iterdir()) == ["resume.previous.pt", "resume.pt"]
    replace_file(path, "2")
    assert previous_state(path).read_text() == "1"


def test_two_states_exist_while_a_third_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed there leaves two files, so that damage to the last one costs a state and not the run."""

    def fail(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "resume.pt"
    save_resume(path, state(1))
    save_resume(path, state(2))
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save_resume(path, state(3))
    assert not path.samefile(previous_state(path))
    path.write_bytes(b"damaged")
    assert load_resume(path, torch.device("cpu"))[0]["state"]["step"] == 1


def entry(step: int, split: str = "train") -> dict:
    return {"step": step, "split": split, "loss": 1.0}


def test_a_log_is_cut_where_the_state_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, None, 0, False)
    log.append(entry(2))
    saved = log.sync()
    whole = path.read_bytes()
    log.append(entry(2, "val"))
    log.append(entry(4))
    for extra in (b"", b'{"step": 5, "sp', b"\xff\xfe\n"):
        path.write_bytes(path.read_bytes() + extra)
        assert not MetricsLog(path, saved, 2, False).is_damaged
        assert path.read_bytes() == whole


@pytest.mark.parametrize("number", range(12))
def test_a_damaged_log_is_told_and_goes_on(tmp_path: Path, number: int) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, None, 0, False)
    for step in (2, 4, 6):
        log.append(entry(step))
    saved = log.sync()
    name, content = list(damages(path.read_bytes()).items())[number]
    path.write_bytes(content)
    again = MetricsLog(path, saved, 6, False)
    assert again.is_damaged, name
    again.append(entry(8))
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept[-1] == entry(8)
    assert all(line in [entry(2), entry(4), entry(6), entry(8)] for line in kept)
    assert not MetricsLog(path, again.sync(), 8, False).is_damaged


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB, "anchors and aliases"),
        ("experiment: {note: '${oc.env:SECRET}'}", "values, not references"),
        ("seed: ${oc.decode:1}", "values, not references"),
        ("note: !!python/object/apply:os.system [touch trace]", "could not determine a constructor"),
        ("[" * 5000, "nested deeper"),
        ("a: " * 100, "mapping values are not allowed"),
        ("- 1", "no mapping"),
        ("", "no mapping"),
        ("x: " + "y" * 2**20, "more than 1048576 bytes"),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_stored_configurations_are_data(
    content: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RunFolderError, match=reason) as caught:
        load_config(tmp_path)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(one_line(caught.value))
    assert not Path("trace").exists()


def test_files_of_a_folder_are_damaged_in_every_way(make_config: Callable[..., Config]) -> None:
    config = make_config()
    folder = RunFolder(Path(str(config.run)))
    folder.path.mkdir()
    record = json.dumps({"metrics": {"val/top1": 1.0}, "weights": "last", "weights_sha256": {"last": "0"}}).encode()
    for content in damages(record).values():
        folder.result.write_bytes(content)
        with pytest.raises(RunFolderError, match=r"result.json is damaged"):
            folder.read_result()
    for content in damages(as_yaml(config).encode()).values():
        (folder.path / "config.yaml").write_bytes(content)
        with suppress(RunFolderError):  # a flipped bit can give another valid value
            load_config(folder.path)
    for path in (folder.result, folder.path / "config.yaml", folder.resume):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    for reader in (folder.read_result, lambda: load_config(folder.path), lambda: load_resume(folder.resume, "cpu")):
        with pytest.raises(RunFolderError, match="not a regular file"):
            reader()  # type: ignore[operator]


def make_tree(root: Path) -> Path:
    for name in ("a", "b"):
        (root / "train" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / "train" / name / "1.png")
    return root / "train"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": b"../../../../../etc/passwd"[:14]}, "leads out"),
        ({"names": b"/tmp/aa/tmp/bb"}, "leads out"),
        ({"names": b"a/..pngb/1.png"}, None),  # dots within a name lead nowhere
        ({"labels": np.array([0, 2], np.int32)}, "label out of range"),
        ({"labels": np.array([-1, 0], np.int32)}, "label out of range"),
        ({"ends": np.array([7, 15])}, "wrong lengths"),
        ({"ends": np.array([7, 7])}, "wrong lengths"),
        ({"ends": np.array([-1, 14])}, "wrong lengths"),
        ({"sizes": np.array([1])}, "different lengths"),
        ({"labels": np.array([0.0, 1.0])}, "another kind"),
        ({"labels": np.array([None, None], dtype=object)}, "allow_pickle"),
    ],
)
def test_a_stored_index_is_not_believed(
    change: dict, reason: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_tree(tmp_path)
    path = save_index(scan_class_folders(folder))
    with np.load(path) as stored:
        arrays = dict(stored)
    assert arrays["names"].tobytes() == b"a/1.pngb/1.png"
    if isinstance(change.get("names"), bytes):
        change = {"names": np.frombuffer(change["names"], np.uint8)}
    np.savez(path, **(arrays | change))
    assert (load_index(folder) is None) == (reason is not None)
    if reason is not None:
        assert "is damaged" in caplog.text
        assert reason in caplog.text


def test_a_compressed_index_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_tree(tmp_path)
    path = save_index(scan_class_folders(folder))
    with np.load(path) as stored:
        np.savez_compressed(path, **dict(stored))
    assert load_index(folder) is None
    assert "compressed" in caplog.text


def test_links_in_circles_and_links_to_nothing(tmp_path: Path) -> None:
    folder = make_tree(tmp_path)
    (folder / "a" / "gone.jpg").symlink_to(tmp_path / "missing")
    index = scan_class_folders(folder)
    assert [index.name(i) for i in range(len(index))] == ["a/1.png", "a/gone.jpg", "b/1.png"]
    assert index.fingerprint()["files"] == 3  # and no error: data.broken decides when the picture is read
    (folder / "b" / "loop").symlink_to(folder / "b")
    with pytest.raises(DataError, match="loop is a link to a folder that it lies in") as caught:
        scan_class_folders(folder)
    assert "\n" not in str(caught.value)


def test_control_characters_are_escaped() -> None:
    for raw in ("a\nb", "\x1b[2J", "\r", "\u202ex", "\udcff", "\x9b31m"):
        assert printable(raw).encode() == raw.encode("unicode_escape")
        assert one_line(UserError(raw)) == printable(raw)
    assert printable("2 settings:\n  - é\n  - 中") == "2 settings:\n  - é\n  - 中"
