"""Readers of our own on any content: each reads it or refuses it in one line. ``DRCONV_FUZZ=100000`` takes longer.

Content is a good file with some bytes, or some values of its JSON, replaced; or anything.
"""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drconv.data.index import index_file, load_index, save_index, scan_class_folders
from drconv.engine.checkpoint import load_resume, save_resume
from drconv.engine.metrics_log import MetricsLog
from drconv.engine.run_folder import RunFolder
from drconv.messages import one_line
from drconv.stored_yaml import read_stored_yaml
from drconv.tasks.detection import index as coco_index
from drconv.tasks.identification.alignment import read_landmarks
from drconv.tasks.identification.megaface import read_feature, read_list, read_noises, write_feature
from drconv.tasks.identification.pairs import read_pairs
from drconv.tasks.identification.recordio import RecordWriter, pack_payload
from drconv.tasks.identification.records import open_faces
from drconv.weights import load_weights, save_weights
from tests.test_bad_files import entry, make_tree, state
from tests.test_detection_annotations import annotation
from tests.test_detection_annotations import write as write_coco

FUZZ = settings(
    max_examples=int(os.environ.get("DRCONV_FUZZ", 60)),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Edits = list[tuple[float, bytes]]
EDITS = st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=8)), min_size=1, max_size=3)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
JSON_EDITS = st.lists(st.tuples(st.floats(0, 1), VALUES), min_size=1, max_size=2)


def edited(content: bytes, edits: Edits) -> bytes:
    """Bytes replaced at places between start (0) and end (1); nothing in place of something cuts the file there."""
    for place, new in edits:
        at = int(place * len(content))
        content = content[:at] + new + content[at + len(new) :] if new else content[:at]
    return content


def places_in(document: Any) -> list[tuple[Any, Any]]:
    """Every value of a JSON document, as its container and key."""
    if not isinstance(document, dict | list):
        return []
    items = list(document.items() if isinstance(document, dict) else enumerate(document))
    return [(document, key) for key, _ in items] + [place for _, value in items for place in places_in(value)]


def edited_json(content: bytes, edits: list[tuple[float, Any]]) -> bytes:
    document = json.loads(content)
    for place, value in edits:
        if places := places_in(document):
            container, key = places[min(int(place * len(places)), len(places) - 1)]
            container[key] = value
    return json.dumps(document).encode()


def read_or_refuse(read: Callable[[], Any]) -> Any:
    """What was read; None where it was refused, in the one line that a user sees."""
    try:
        return read()
    except Exception as error:
        line = one_line(error)
        if line is None:  # a defect, which would end in a trace
            raise
        assert line.strip()
        assert "\n" not in line
        return None


def write_records(path: Path) -> None:
    with RecordWriter(path) as writer:
        for key, label in ((1, 0.0), (2, 0.0), (3, 1.0)):
            writer.write(key, pack_payload(label, key, b"picture"))


def faces_of(path: Path) -> Any:
    path.with_name(path.name + ".faces.npz").unlink(missing_ok=True)
    return open_faces(path)


def landmarks_of(path: Path) -> list[Any]:
    return list(read_landmarks(path))


def coco_of(path: Path) -> Any:
    coco_index._cache_file(path).unlink(missing_ok=True)
    return coco_index.load_coco(path)


def save_picture_pairs(path: Path) -> None:
    path.write_bytes(
        pickle.dumps(([b"one", b"two", np.frombuffer(b"three", np.uint8), b"four"], [True, np.bool_(False)]))
    )


def write_json(content: Any) -> Callable[[Path], None]:
    return lambda path: path.write_text(json.dumps(content)) and None


def write_text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


RECORD = {"schema": 3, "metrics": {"val/top1": 1.0}, "weights": "last", "weights_sha256": {"last": "0"}}
READERS: dict[str, tuple[str, Callable[[Path], Any], Callable[[Path], Any]]] = {  # file, writer, reader
    "state": (
        "resume.pt",
        lambda path: save_resume(path, state(1)),
        lambda path: load_resume(path, torch.device("cpu")),
    ),
    "weights": (
        "last.safetensors",
        lambda path: save_weights(path, torch.nn.Linear(2, 3), {}),
        lambda path: load_weights(path, torch.nn.Linear(2, 3)),
    ),
    "record": ("result.json", write_json(RECORD), lambda path: RunFolder(path.parent).read_result()),
    "RecordIO": ("train.rec", write_records, faces_of),
    "pairs": ("lfw.bin", save_picture_pairs, read_pairs),
    "feature": ("a.bin", lambda path: write_feature(path, np.ones(4)), read_feature),
    "list": ("list_2_1", write_json({"path": ["a", "b"], "id": ["x", "y"]}), read_list),
    "noises": ("noises.txt", write_text("a.jpg\nb.jpg\n"), lambda path: read_noises(path, ["a.jpg", "c.jpg"])),
    "landmarks": ("landmarks.txt", write_text("a.jpg 1 2 3 4 5 6 7 8 9 10\n"), landmarks_of),
    "COCO": ("instances.json", lambda path: write_coco(path.parent, [annotation()]), coco_of),
}
JSON_READERS = ["record", "list", "COCO"]


@pytest.mark.parametrize("kind", READERS)
@FUZZ
@given(edits=EDITS)
def test_any_bytes_are_read_or_refused(
    kind: str, edits: Edits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path))
    name, write, read = READERS[kind]
    path, good = tmp_path / name, tmp_path / "good"
    if not good.exists():
        write(path)
        assert read_or_refuse(lambda: read(path)) is not None or kind == "weights"
        path.rename(good)
    for content in (edited(good.read_bytes(), edits), edits[0][1]):
        path.write_bytes(content)
        read_or_refuse(lambda: read(path))


@pytest.mark.parametrize("kind", JSON_READERS)
@FUZZ
@given(edits=JSON_EDITS)
def test_any_values_are_read_or_refused(
    kind: str, edits: list[tuple[float, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path))
    name, write, read = READERS[kind]
    path = tmp_path / name
    write(path)
    path.write_bytes(edited_json(path.read_bytes(), edits))
    read_or_refuse(lambda: read(path))


@FUZZ
@given(st.binary(max_size=300))
def test_any_log_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    for text in (content, b'{"step": 1, "split": "train"}\n' + content):
        path.write_bytes(text)
        log = MetricsLog(path, None, 5, True)
        log.append(entry(6))
        assert json.loads(path.read_bytes().splitlines()[-1]) == entry(6)


@FUZZ
@given(st.binary(max_size=200) | st.text(alphabet="{}[]&*!|>:- \n${}ab1", max_size=60).map(str.encode))
def test_any_stored_yaml_is_read_or_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(content)
    with suppress(ValueError):
        assert isinstance(read_stored_yaml(tmp_path / "config.yaml"), dict)


@FUZZ
@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_any_index_is_read_or_refused(tmp_path: Path, content: bytes, place: int) -> None:
    folder = tmp_path / "train"
    if not folder.exists():
        make_tree(tmp_path)
        save_index(scan_class_folders(folder))
        tmp_path.joinpath("good").write_bytes(index_file(folder).read_bytes())
    good = tmp_path.joinpath("good").read_bytes()
    place %= len(good)
    index_file(folder).write_bytes(good[:place] + content + good[place + len(content) :])
    index = load_index(folder)
    assert index is None or len(index) == 2
    index_file(folder).write_bytes(content)
    assert load_index(folder) is None
