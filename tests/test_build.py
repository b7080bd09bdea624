"""The build of the C++ kernel: where it goes, what it trusts, and what is left when its process is killed."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from drconv.nn.kernels import build


def write(library: Path) -> list[str]:
    return ["sh", "-c", f"echo built >> {library}"]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path / "temporary"))


def test_built_once_and_whole(tmp_path: Path) -> None:
    library = build.find_or_build("kernel", write)
    assert library == tmp_path / "cache" / "drconv" / "kernel" / "kernel.so"
    assert build.find_or_build("kernel", write) == library
    assert library.read_text() == "built\n"
    assert {path.name for path in library.parent.iterdir()} == {"kernel.so", "flock"}


def test_named_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "named"))
    assert build.find_or_build("kernel", write) == tmp_path / "named" / "kernel" / "kernel.so"


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    def fail(library: Path) -> list[str]:
        return ["sh", "-c", f"echo note; touch {library}; echo 'a.cpp:1: fatal error: no such header' >&2; exit 1"]

    with pytest.raises(OSError, match=r"^a\.cpp:1: fatal error: no such header$"):
        build.find_or_build("kernel", fail)
    assert [path.name for path in (tmp_path / "cache" / "drconv" / "kernel").iterdir()] == ["flock"]
    assert build.find_or_build("kernel", write).exists()


def test_a_finished_cache_that_cannot_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "named" / "kernel"
    folder.mkdir(parents=True)
    (folder / "kernel.so").write_text("theirs")
    monkeypatch.setattr(build, "_open_lock", lambda path: pytest.fail("nothing is to be locked"))
    monkeypatch.setattr(build.os, "getuid", lambda: os.stat(folder).st_uid + 1)  # theirs
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "named"))
    assert build.find_or_build("kernel", write).read_text() == "theirs"


def test_an_unfinished_cache_that_cannot_be_written_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "file"))  # no folder can be made in it
    assert build.find_or_build("kernel", write) == tmp_path / "cache" / "drconv" / "kernel" / "kernel.so"


def test_what_others_could_have_written_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a library in a cache of somebody else, nor one in a folder that all can write."""
    folder = tmp_path / "cache" / "drconv" / "kernel"
    folder.mkdir(parents=True)
    (folder / "kernel.so").write_text("theirs")
    folder.chmod(0o777)
    library = build.find_or_build("kernel", write)
    assert library.read_text() == "built\n"
    assert library.is_relative_to(tmp_path / "temporary")
    folder.chmod(0o755)
    owner = folder.stat().st_uid
    if owner == 0:  # root trusts its own files only, and everybody those of root
        os.chown(folder / "kernel.so", 12345, -1)
    else:
        monkeypatch.setattr(build.os, "getuid", lambda: owner + 1)
    assert not build._is_own(folder / "kernel.so")


def test_without_any_place_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_open_lock", lambda path: None)
    with pytest.raises(OSError, match="name one in TORCH_EXTENSIONS_DIR"):
        build.find_or_build("kernel", write)


def test_a_killed_build_leaves_no_compiler_and_none_beside_it(tmp_path: Path) -> None:
    """As root or not: the compiler, and what it has started, end soon after; until then the lock is held."""
    pids = tmp_path / "pids"

    def slow(library: Path) -> list[str]:
        return ["sh", "-c", f"echo $$ >> {pids}; sh -c 'echo $$ >> {pids}; sleep 60' & wait"]

    child = os.fork()
    if child == 0:
        try:
            build.find_or_build("kernel", slow)
        finally:
            os._exit(1)
    wait_for(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    compilers = [int(pid) for pid in pids.read_text().split()]
    alive_then: list[bool] = []

    def check(library: Path) -> list[str]:
        alive_then.extend(is_alive(pid) for pid in compilers)
        return write(library)

    assert build.find_or_build("kernel", check).read_text() == "built\n"
    assert alive_then == [False, False]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that waits for its parent to notice has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
