"""COCO files as they are on disk: what is understood, what is counted, what is refused with annotation and file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from drconv.errors import DataError
from drconv.tasks.detection import index as index_module
from drconv.tasks.detection.annotations import read_annotations
from drconv.tasks.detection.index import load_coco
from drconv.tasks.detection.runs import decode_mask, expand_runs

ROWS, COLUMNS = 40, 60
SQUARE = np.zeros((ROWS, COLUMNS), dtype=np.uint8)
SQUARE[10:20, 5:25] = 1
POLYGON = [[5, 10, 25, 10, 25, 20, 5, 20]]
Record = dict[str, Any]


def runs(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of a mask, column by column, zeros first; one pixel after the other."""
    counts, value = [0], 0
    for pixel in mask.flatten(order="F"):
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def annotation(**changes: Any) -> Record:
    return {
        "id": 1,
        "image_id": 7,
        "category_id": 3,
        "bbox": [5, 10, 20, 10],
        "area": 200,
        "iscrowd": 0,
        "segmentation": POLYGON,
    } | changes


def write(folder: Path, annotations: list[Any], **changes: Any) -> Path:
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "height": ROWS, "width": COLUMNS}],
        "categories": [{"id": 3, "name": "cat"}, {"id": 1, "name": "ant"}],
        "annotations": annotations,
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content | changes))
    return path


def read(folder: Path, annotations: list[Record], **changes: Any) -> Any:
    return read_annotations(write(folder, annotations, **changes))


COMPRESSED = rle.encode(np.asfortranarray(SQUARE))["counts"].decode()


@pytest.mark.parametrize("is_crowd", [0, 1])
@pytest.mark.parametrize(
    "segmentation",
    [
        POLYGON,
        {"size": [ROWS, COLUMNS], "counts": runs(SQUARE)},
        {"size": [ROWS, COLUMNS], "counts": COMPRESSED},
    ],
    ids=["polygon", "runs", "compressed"],
)
def test_all_forms_of_a_mask_are_the_same_mask(tmp_path: Path, segmentation: Any, is_crowd: int) -> None:
    (found,) = read(tmp_path, [annotation(segmentation=segmentation, iscrowd=is_crowd)]).annotations
    np.testing.assert_array_equal(decode_mask(found.mask, (ROWS, COLUMNS)), SQUARE)
    assert found.is_trained is not bool(is_crowd)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_runs_are_decoded_column_by_column(seed: int, rows: int, columns: int) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (rows, columns)).astype(np.uint8)
    encoded = rle.frPyObjects({"size": [rows, columns], "counts": runs(mask)}, rows, columns)
    np.testing.assert_array_equal(decode_mask(encoded["counts"], (rows, columns)), mask)
    assert expand_runs(encoded["counts"]) == runs(mask)


@pytest.mark.parametrize("parts", [[[1, 2, 3, 4]], [[]], [], [[1, 2, 3, 4, 5]], [[1, 2]], [[1, 1, 9, 1, 9, 9, 1]]])
def test_parts_that_are_no_polygon_are_left_out(tmp_path: Path, parts: list[list[float]]) -> None:
    """pycocotools takes four numbers for a box, and fails on two or on none."""
    good, alone = read(
        tmp_path, [annotation(segmentation=[*parts, *POLYGON]), annotation(segmentation=parts)]
    ).annotations
    np.testing.assert_array_equal(decode_mask(good.mask, (ROWS, COLUMNS)), SQUARE)
    assert alone.mask == b""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "annotation 1 of .*instances.json has a segmentation that is neither"),
        ({"segmentation": {"size": [COLUMNS, ROWS], "counts": runs(SQUARE)}}, r"a mask of \[60, 40\] for a picture of"),
        ({"segmentation": {"size": [ROWS, COLUMNS], "counts": [10, 5]}}, "runs of 15 pixels for a picture of 2400"),
        ({"segmentation": {"size": [ROWS, COLUMNS], "counts": "PPP"}}, "cannot be decoded"),
        ({"segmentation": {"size": [ROWS, COLUMNS], "counts": COMPRESSED[:-3]}}, "pixels for a picture of 2400"),
        ({"category_id": 2}, "annotation 1 .* has category 2, which is not among"),
        ({"image_id": 9}, "annotation 1 .* belongs to picture 9, which is not listed"),
        ({"bbox": [1, 2, 3]}, "not x, y, width, height"),
        ({"bbox": [1, 2, 3, float("nan")]}, "in finite numbers"),
        ({"bbox": [10**400, 1, 1, 1]}, "in finite numbers"),
        ({"bbox": ["1", "1", "2", "2"]}, "in finite numbers"),
        # pycocotools ends the interpreter on these, or never comes back
        ({"segmentation": [[1, 1, float("nan"), 1, 11, 11]]}, "a polygon's corner at nan, far outside"),
        ({"segmentation": [[1, 1, float("inf"), 1, 11, 11]]}, "a polygon's corner at inf, far outside"),
        ({"segmentation": [[1, 1, 1e9, 1, 11, 11]]}, "a polygon's corner at 1000000000.0, far outside"),
        ({"segmentation": [[1, -1e18, 9, 1, 11, 11]]}, "far outside its picture of 40 rows and 60 columns"),
        ({"segmentation": [["1"] * 6]}, "polygons that are not numbers"),
        ({"segmentation": {"size": [ROWS, COLUMNS], "counts": [2**40, 2400 - 2**40]}}, "runs of 2400 pixels"),
        ({"segmentation": {"size": [ROWS, COLUMNS], "counts": [1200.5, 1199.5]}}, "neither a list of whole numbers"),
        ({"segmentation": {"size": [ROWS, COLUMNS], "counts": "o" * 300_000}}, "cannot be decoded"),
        ({"segmentation": {"size": 5, "counts": [2400]}}, "a mask of 5 for a picture"),
        ({"area": "100"}, "has the area '100', which is no number"),
        ({"iscrowd": "0"}, "has iscrowd '0', which is neither 0 nor 1"),
        ({"image_id": [7]}, r"belongs to picture \[7\]"),
        ({"category_id": [3]}, r"has category \[3\]"),
        ({"category_id": True}, "has category True"),
    ],
)
def test_contradictions_are_refused_by_name(tmp_path: Path, changes: Record, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, [annotation(**changes)])


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text("[]")
    with pytest.raises(DataError, match=r"captions\.json is no COCO annotation file"):
        read_annotations(path)
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"captions\.json is no COCO annotation file"):
        read_annotations(path)
    twice = [{"id": 7, "file_name": "a.jpg", "height": 1, "width": 1}] * 2
    with pytest.raises(DataError, match="lists 1 pictures twice"):
        read(tmp_path, [], images=twice)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "images is no list of records"),
        ({"annotations": ["x"]}, "annotations is no list of records"),
        ({"categories": [{"id": 3}]}, "category .* lacks a whole number as id, or a name"),
        ({"categories": [{"id": 1.5, "name": "x"}]}, "category .* lacks a whole number as id"),
        *(
            ({"images": [{"id": 7, "file_name": "a.jpg", "height": ROWS, "width": COLUMNS} | change]}, message)
            for change, message in (
                ({"id": [7]}, "the id is no whole number or text"),
                ({"id": None}, "the id is no whole number or text"),
                ({"height": 40.7}, "height or width is no whole number"),
                ({"height": float("inf")}, "height or width is no whole number"),
                ({"height": 10**12}, "more than 1073741824 pixels"),
                ({"height": 10**6, "width": 10**6}, "more than 1073741824 pixels"),
                ({"file_name": "\ud800.jpg"}, "surrogates not allowed"),
                ({"file_name": ["a"]}, "there is no file name"),
                ({"file_name": "../../a.jpg"}, "leads out of the folder"),
                ({"file_name": "/a.jpg"}, "leads out of the folder"),
            )
        ),
    ],
)
def test_records_of_another_kind_are_refused(changes: Record, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, **({"annotations": [annotation()]} | changes))
    assert "instances.json" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [5, 10, 20, 0]},
        {"bbox": [5, 10, -3, 4]},
        {"bbox": [70, 10, 5, 5]},  # beside the picture
        {"segmentation": [[5, 10, 5.3, 10, 5.3, 20, 5, 20]], "bbox": [5, 10, 0.3, 10]},  # no pixel's width
        {"segmentation": [[70, 10, 80, 10, 80, 20]]},
    ],
)
def test_boxes_and_masks_without_extent_are_not_trained_on(tmp_path: Path, changes: Record) -> None:
    """Two boxes of train2017 have no height. They count in evaluation, and would be log(0) in training."""
    contents = read(tmp_path, [annotation(id=918, **changes), annotation(), annotation()])
    assert [one.is_trained for one in contents.annotations] == [False, True, True]
    assert "(918)" in contents.findings.lines()[0]


def test_corners_in_place_of_extents_are_refused(tmp_path: Path) -> None:
    corners = [annotation(bbox=[30, 20, 50, 39], segmentation=[]), annotation(bbox=[30, 20, 55, 40], segmentation=[])]
    with pytest.raises(DataError, match=r"2 of 3 boxes .* are they corners"):
        read(tmp_path, [*corners, annotation()])


def test_missing_area_and_crowd_and_repeated_ids_are_made_good(tmp_path: Path) -> None:
    records = [annotation(), annotation()]
    for record in records:
        del record["area"], record["iscrowd"]
    records[1]["segmentation"] = []
    contents = read(tmp_path, records)
    assert [one.area for one in contents.annotations] == [200, 200]
    lines = " ".join(contents.findings.lines())
    assert "2 annotations without area" in lines
    assert "ids that several annotations share" in lines


def test_labels_follow_the_ids_of_the_categories(tmp_path: Path) -> None:
    contents = read(tmp_path, [annotation(), annotation(category_id=1)])
    assert contents.categories == [(1, "ant"), (3, "cat")]
    assert [one.label for one in contents.annotations] == [2, 1]


def test_an_index_is_what_was_read_and_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path / "cache"))
    images = [
        {"id": key, "file_name": f"{key}é.jpg", "height": ROWS, "width": COLUMNS}
        for key in ("b", 12, "12", 908400416500)
    ]
    records = [annotation(image_id=12), annotation(image_id="b", iscrowd=1), annotation(image_id=12, segmentation=[])]
    path = write(tmp_path, records, images=images)
    fresh = load_coco(path)
    monkeypatch.setattr(index_module, "read_annotations", None)  # a second reading would fail
    stored = load_coco(path)
    for known in (fresh, stored):
        assert [known.key(i) for i in range(4)] == ["b", 12, "12", 908400416500]
        assert known.name(1) == "12é.jpg"
        assert [list(known.annotations(i)) for i in range(4)] == [[0], [1, 2], [], []]
        assert known.crowd.tolist() == [True, False, False]
        assert [bool(known.masks[i]) for i in range(3)] == [True, True, False]
        assert known.corners([1], 1).tolist() == [[5, 10, 25, 20]]
    assert stored.digest == fresh.digest


def test_a_changed_file_is_indexed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path / "cache"))
    assert len(load_coco(write(tmp_path, [annotation()])).labels) == 1
    assert len(load_coco(write(tmp_path, [annotation(), annotation()])).labels) == 2
    (stored,) = (tmp_path / "cache").glob("*.safetensors")
    stored.write_bytes(b"damaged")
    assert len(load_coco(tmp_path / "instances.json").labels) == 2
