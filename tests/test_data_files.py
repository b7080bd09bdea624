"""Picture folders: decoding, the packed index, the layouts, and what is said about wrong ones."""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drconv.commands import data
from drconv.config import DataConfig
from drconv.data import DataError
from drconv.data.decode import read_picture
from drconv.data.index import index_file, load_index, pack, save_index, scan_class_folders
from drconv.data.source import check_same_classes
from drconv.tasks.classification import build_dataset
from drconv.tasks.classification.check import find_problems, summarise
from drconv.tasks.classification.imagenet import (
    GROUND_TRUTH_FILE,
    SOLUTION_FILE,
    SYNSETS_FILE,
    read_solution,
    read_synsets,
)

WNIDS = ["n02119789", "n01440764", "n02100735"]  # not sorted, as ILSVRC's ids
ROOT = Path(__file__).parents[1]


def save_picture(path: Path, level: int = 128, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, 255 - level, 7)).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """train/ with 3 + 2 pictures of two classes, val/ with one each."""
    for number in range(3):
        save_picture(tmp_path / "train" / "ant" / f"{number}.jpg", 40 * number)
    for name in ("b.PNG", "sub/a.jpeg"):
        save_picture(tmp_path / "train" / "bee" / name, 200)
    for name in ("ant", "bee"):
        save_picture(tmp_path / "val" / name / "x.jpg")
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no picture")
    (tmp_path / "train" / "ant" / "._0.jpg").write_text("hidden")
    return tmp_path


def config_for(root: Path, **changes: object) -> DataConfig:
    options: dict = {"name": "imagefolder", "root": str(root), "image_size": 8, "eval_resize": 8} | changes
    return DataConfig(**options)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", mode) for mode in ("RGB", "L", "CMYK")]
    + [("PNG", mode) for mode in ("RGB", "L", "P", "RGBA", "LA", "1")],
)
def test_every_colour_mode_becomes_rgb_as_in_pillow(kind: str, mode: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), dtype=np.uint8)
    picture, path = Image.fromarray(noise).convert(mode), tmp_path / "picture.JPEG"
    picture.save(path, kind)
    expected = np.asarray(Image.open(path).convert("RGB"))
    decoded = read_picture(path)
    assert decoded.shape == (3, 9, 13)
    assert decoded.dtype == torch.uint8
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("content", ["empty", "text", "truncated", "missing"])
def test_a_broken_picture_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.jpg"
    save_picture(path, size=(64, 64))
    data = {"empty": b"", "text": b"not a picture", "truncated": path.read_bytes()[:-200], "missing": None}[content]
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)
    with pytest.raises(DataError, match=r"broken.jpg.*; repair or remove it$") as caught:
        read_picture(path)
    assert "\n" not in str(caught.value)


def test_folder_is_indexed_in_sorted_order(tree: Path) -> None:
    dataset = build_dataset(config_for(tree), "train")
    index = scan_class_folders(tree / "train")
    assert dataset.classes == ["ant", "bee"]
    assert [index.name(i) for i in range(5)] == ["ant/0.jpg", "ant/1.jpg", "ant/2.jpg", "bee/b.PNG", "bee/sub/a.jpeg"]
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.describe() == f"{tree}/train: 5 pictures, 2 classes"
    assert dataset[(3, 0)]["label"] == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1), min_size=1)))
def test_packed_names_come_back(groups: list[list[str]]) -> None:
    groups = groups or [["a"]]
    index = pack(Path("/x"), [], enumerate(groups))
    assert [index.name(i) for i in range(len(index))] == [name for group in groups for name in group]
    assert index.labels.tolist() == [label for label, group in enumerate(groups) for _ in group]


def test_stored_index_is_used_until_the_folder_changes(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tree / "train"
    fresh = scan_class_folders(folder)
    save_index(fresh)
    caplog.clear()  # the scan says that it passed a text file over
    assert sorted(os.listdir(tree)) == ["train", "train.index.npz", "val"]
    stored = load_index(folder)
    assert stored is not None
    assert stored.fingerprint() == fresh.fingerprint()
    assert not caplog.records
    save_picture(folder / "bee" / "sub" / "new.jpg")
    assert load_index(folder) is None
    assert "out of date" in caplog.text
    assert len(build_dataset(config_for(tree), "train")) == 6


def test_damaged_index_is_not_used(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save_index(scan_class_folders(tree / "train"))
    path.write_bytes(path.read_bytes()[:100])
    assert load_index(tree / "train") is None
    assert "damaged" in caplog.text


def test_failed_write_leaves_the_old_index(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = scan_class_folders(tree / "train")
    before = save_index(index).read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_index(index)
    assert index_file(tree / "train").read_bytes() == before
    assert not list(tree.glob("*.tmp"))


def test_fingerprint_changes_with_names_and_sizes(tree: Path) -> None:
    before = build_dataset(config_for(tree), "train").fingerprint()
    assert before == build_dataset(config_for(tree), "train").fingerprint()
    assert (before["pictures"], before["files"], before["classes"]) == (5, 5, 2)
    os.rename(tree / "train/ant/0.jpg", tree / "train/ant/00.jpg")
    renamed = build_dataset(config_for(tree), "train").fingerprint()
    save_picture(tree / "train/ant/1.jpg", size=(99, 99))
    resized = build_dataset(config_for(tree), "train").fingerprint()
    assert len({before["sha256"], renamed["sha256"], resized["sha256"]}) == 3


def test_wrong_folders_are_explained(tree: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train/<class>/<picture>.jpg"):
        build_dataset(config_for(tree / "nowhere"), "train")
    with pytest.raises(FileNotFoundError, match=r"data.root is not set"):
        build_dataset(DataConfig(name="imagefolder"), "train")
    with pytest.raises(FileNotFoundError, match="no class folders"):
        build_dataset(config_for(tree, train_split="train/ant"), "train")
    (tree / "val" / "cat").mkdir()
    with pytest.raises(DataError, match=r"train lacks 1 class folders of .*val \(cat\)"):
        build_dataset(config_for(tree), "train")
    with pytest.raises(DataError, match="cat has no pictures"):
        build_dataset(config_for(tree), "val")


def test_the_split_that_lacks_a_class_is_named(tmp_path: Path) -> None:
    for name in ("train/cat", "train/dog", "train/eel", "val/dog"):
        (tmp_path / name).mkdir(parents=True)
    train, val = tmp_path / "train", tmp_path / "val"
    message = rf"{val} lacks 2 class folders of {train} \(cat, eel\)"
    with pytest.raises(DataError, match=message):
        check_same_classes(["cat", "dog", "eel"], train, val)
    with pytest.raises(DataError, match=message):
        check_same_classes(["dog"], val, train)
    check_same_classes(["dog"], val, tmp_path / "nowhere")


def test_broken_pictures_can_be_skipped(tree: Path) -> None:
    (tree / "train/ant/2.jpg").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"2.jpg"):
        build_dataset(config_for(tree), "train")[(2, 0)]
    dataset = build_dataset(config_for(tree, broken="skip"), "train")
    replaced, good = dataset[(2, 0)], dataset[(3, 0)]
    assert (replaced["valid"], replaced["index"], replaced["label"]) == (False, 2, 1)
    assert torch.equal(replaced["image"], good["image"])
    assert good["valid"] is True
    for path in (tree / "train").rglob("*.*"):
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match="none of the 5 pictures"):
        dataset[(0, 0)]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """train/ with three wnids and a flat val/ of four pictures of the ILSVRC ids 2, 1, 3, 1."""
    for wnid in WNIDS:
        save_picture(tmp_path / "train" / wnid / f"{wnid}_1.JPEG")
    for number in range(1, 5):
        save_picture(tmp_path / "val" / f"ILSVRC2012_val_{number:08}.JPEG")
    return tmp_path


def write_solution(root: Path) -> None:
    rows = [f"ILSVRC2012_val_{n:08},{WNIDS[i - 1]} 85 1 499 272" for n, i in enumerate((2, 1, 3, 1), start=1)]
    (root / SOLUTION_FILE).write_text("\n".join(["ImageId,PredictionString", *reversed(rows)]) + "\n")


def write_ground_truth(root: Path) -> None:
    (root / GROUND_TRUTH_FILE).write_text("2\n1\n3\n1\n")
    (root / SYNSETS_FILE).write_text("".join(f"{wnid} some name\n" for wnid in WNIDS))


@pytest.mark.parametrize("write", [write_solution, write_ground_truth])
def test_flat_validation_folder(write: Callable[[Path], None], flat: Path) -> None:
    write(flat)
    train, val = (build_dataset(config_for(flat, name="imagenet"), split) for split in ("train", "val"))
    assert val.classes == train.classes == sorted(WNIDS)
    index = val.source.index  # type: ignore[attr-defined]
    labels = {index.name(i): val.classes[int(label)] for i, label in enumerate(val.labels)}
    assert [labels[f"ILSVRC2012_val_{n:08}.JPEG"] for n in range(1, 5)] == [WNIDS[i - 1] for i in (2, 1, 3, 1)]
    assert val[(0, 0)]["image"].shape == (3, 8, 8)  # type: ignore[union-attr]


def test_flat_validation_without_labels_is_explained(flat: Path) -> None:
    config = config_for(flat, name="imagenet")
    with pytest.raises(FileNotFoundError, match=SOLUTION_FILE):
        build_dataset(config, "val")
    write_ground_truth(flat)
    (flat / SYNSETS_FILE).write_text("\n".join(sorted(WNIDS)))
    with pytest.raises(DataError, match="is sorted"):
        build_dataset(config, "val")
    (flat / GROUND_TRUTH_FILE).write_text("1\n2\n")
    write_solution(flat)  # is preferred
    assert len(build_dataset(config, "val")) == 4
    save_picture(flat / "val" / "other.JPEG")
    with pytest.raises(DataError, match=r"1 pictures .*not in the ground truth, other.JPEG"):
        build_dataset(config, "val")


@pytest.mark.parametrize("text", ["n01440764\nn1\n", "n01440764\nn01440764\n"])
def test_wrong_synsets_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(DataError, match="one wnid"):
        read_synsets(tmp_path / "s.txt")


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.from_regex(r"[A-Za-z0-9_]{1,12}", fullmatch=True), st.integers(0, 99_999_999)), max_size=8)
)
def test_solution_comes_back(rows: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "solution.csv"
        lines = [f"{name},n{number:08} 1 2 3 4 n{number:08} 5 6 7 8" for name, number in rows]
        path.write_text("\n".join(["ImageId,PredictionString", *lines]))
        assert read_solution(path) == {name: f"n{number:08}" for name, number in rows}
        path.write_text("ImageId,PredictionString\nname,lost 1 2")
        with pytest.raises(DataError, match="line 2"):
            read_solution(path)


def test_check_finds_what_is_wrong(tree: Path) -> None:
    (tree / "train/ant/2.jpg").write_bytes(b"broken")
    config = config_for(tree, name="imagenet")
    dataset = build_dataset(config, "train")
    problems = list(find_problems(dataset, config, "train", decodes=9))
    assert len(problems) == 4
    assert [word for word in ("2 classes", "5 pictures", "wnids", "2.jpg") if word not in "".join(problems)] == []
    assert summarise(dataset).endswith("2 classes, 2 to 3 pictures in a class")


def test_script_writes_the_index_and_reports(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data.main(["index", "--root", str(tree)]) == 0
    assert index_file(tree / "train").exists()
    assert data.main(["check", "--root", str(tree)]) == 0
    assert "no problems found" in capsys.readouterr().out
    assert data.main(["fingerprint", "--root", str(tree)]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["files"] == 5
    (tree / "val/ant/x.jpg").write_bytes(b"broken")
    assert data.main(["check", "--root", str(tree)]) == 1
    assert data.main(["check", "--root", str(tree / "nowhere")]) == 1
    assert capsys.readouterr().err.count("--root") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_reading_the_index_in_a_forked_process_copies_nothing() -> None:
    """Half a million names: 0.4 MiB grow here; with a list of tuples it is 80 MiB."""
    index = pack(Path("/x"), ["c"], [(0, [f"n01440764/n01440764_{number}.JPEG" for number in range(500_000)])])
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        before = private_mib()
        for position in range(0, len(index), 50):  # touches every page
            index.name(position)
        os.write(send, str(private_mib() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert float(os.read(receive, 100)) < 3


def private_mib() -> float:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty")) / 1024
