"""The cache that many processes fill at once: each under a name of its own, and nothing is left over."""

import contextlib
import threading
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from drconv.files import one_at_a_time
from drconv.tasks.detection import index, scenes
from tests.test_detection_annotations import annotation, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def _without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""
    for module in (index, scenes):
        monkeypatch.setattr(module, "one_at_a_time", lambda path: contextlib.nullcontext())


def test_one_is_inside_at_a_time(tmp_path: Path) -> None:
    entered = threading.Event()

    def follow() -> None:
        with one_at_a_time(tmp_path / "lock"):
            entered.set()

    other = threading.Thread(target=follow)
    with one_at_a_time(tmp_path / "lock"):
        other.start()
        assert not entered.wait(0.2)
    other.join()
    assert entered.is_set()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"), one_at_a_time(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()


def test_an_index_is_mapped_and_goes_to_loader_processes_as_a_handle(cache: Path, tmp_path: Path) -> None:
    """Its arrays are pages of the file, and what a process is sent does not grow with the file."""
    sizes = []
    for number in (1, 2000):
        (tmp_path / str(number)).mkdir()
        path = write(tmp_path / str(number), [annotation() for _ in range(number)])
        index.load_coco(path)
        stored = max(cache.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        known = index.load_coco(path)
        assert str(stored) in Path("/proc/self/maps").read_text()
        assert len(known.labels) == number
        sizes.append(len(bytes(ForkingPickler.dumps(known))))
    assert sizes[1] < sizes[0] + 100


@pytest.mark.parametrize("change", ["labels", "boxes", "ends", "masks.ends"])
def test_an_index_whose_parts_do_not_fit_is_made_again(change: str, cache: Path, tmp_path: Path) -> None:
    path = write(tmp_path, [annotation(), annotation()])
    index.load_coco(path)
    (stored,) = cache.glob("*.safetensors")
    with safe_open(stored, framework="pt") as file:
        metadata = file.metadata()
    tensors = {name: tensor.clone() for name, tensor in load_file(stored).items()}
    tensors[change] = tensors[change] + 7 if change in ("labels", "ends") else tensors[change][:1]
    save_file(tensors, stored, metadata=metadata)
    known = index.load_coco(path)
    assert known.labels.tolist() == [2, 2]
    assert known.boxes.shape == (2, 4)


@pytest.mark.usefixtures("_without_locks")
def test_two_processes_write_the_scenes(cache: Path) -> None:
    """The second begins and ends while the first one writes."""
    write_scenes, calls = scenes.write_scenes, []

    def write_during_another(root: Path, split: str, seed: int) -> None:
        calls.append(root)
        if len(calls) == 1:
            scenes.scenes_folder()
        write_scenes(root, split, seed)

    with patch.dict(scenes.COUNTS, train=1, val=1), patch.object(scenes, "write_scenes", write_during_another):
        folder = scenes.scenes_folder()
    assert len(set(calls)) == 2
    assert {path.name for path in folder.iterdir()} == {"annotations", "train2017", "val2017"}
    assert list(cache.iterdir()) == [folder]


@pytest.mark.usefixtures("_without_locks")
def test_two_processes_write_an_index(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, [annotation()])
    read = index.read_annotations
    others: list[Any] = []

    def read_during_another(file: Path) -> Any:
        if not others:
            others.append(None)
            others[0] = index.load_coco(file)
        return read(file)

    monkeypatch.setattr(index, "read_annotations", read_during_another)
    own = index.load_coco(path)
    assert len(own.labels) == len(others[0].labels) == 1
    assert [file.suffix for file in cache.iterdir()] == [".safetensors"]
