"""Average precision: equal to pycocotools by hand on the written results, and safe where pycocotools is not."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from drconv.config import DataConfig
from drconv.tasks.detection.average_precision import MOST, AveragePrecision, Found
from drconv.tasks.detection.dataset import CocoDataset, build_dataset
from drconv.tasks.detection.masks import encode_masks, paste_mask
from tests.coco import box, grey, scenes_root, write_coco


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> CocoDataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRCONV_CACHE", str(tmp_path_factory.mktemp("cache")))
        return build_dataset(DataConfig(name="coco", root=str(scenes_root())), "val")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path / "cache"))


def noisy(dataset: CocoDataset, seed: int = 0) -> list[Found]:
    """The ground truth of every picture, shifted, with some classes wrong, some missed, and repeated scores."""
    random = np.random.default_rng(seed)
    found = []
    for index in range(len(dataset)):
        part, position = dataset.locate(index)
        size = part.index.size(position)
        rows = [i for i in part.index.annotations(position) if random.random() < 0.8]
        boxes, masks, labels = np.zeros((0, 4)), [], []
        for i in rows:
            x, y, w, h = part.index.boxes[i].numpy() + random.normal(0, 2, 4)
            boxes = np.concatenate([boxes, [[x, y, x + max(w, 2), y + max(h, 2)]]])
            mask = rle.decode({"size": list(size), "counts": part.index.masks[i]})
            masks.append(rle.encode(np.asfortranarray(np.roll(mask, int(random.integers(0, 4)), 0)))["counts"])
            labels.append(int(part.index.labels[i]) if random.random() < 0.8 else int(random.integers(1, 11)))
        scores = np.round(random.random(len(rows)), 1)
        found.append(Found(index, boxes, scores, np.array(labels, dtype=np.int64), masks))
    return found


def score(dataset: CocoDataset, found: list[Found], folder: Path | None = None, **options: Any) -> dict[str, float]:
    metric = AveragePrecision(dataset, folder, **options)
    for one in found:
        metric.add(one)
    return metric.compute()


def by_hand(truth: Path, results: Path, kind: str) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        for number, record in enumerate(coco.dataset["annotations"], 1):
            record["id"] = number
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(str(results)), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return (100 * evaluation.stats[:6]).tolist()


def test_numbers_are_those_of_pycocotools_on_the_written_json(scenes: CocoDataset, tmp_path: Path) -> None:
    metrics = score(scenes, noisy(scenes), tmp_path)
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        expected = by_hand(scenes.parts[0].index.path, tmp_path / f"val.{kind}.json", kind)
        keys = [f"{name}_{key}" for key in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")]
        assert [metrics.get(key, -100) for key in keys] == pytest.approx(expected)  # -1 there: no such object
        assert 5 < metrics[f"{name}_ap"] < 95
    classes = json.loads((tmp_path / "val.classes.json").read_text())
    known = [row["box_ap"] for row in classes.values()]
    assert np.mean(known) == pytest.approx(metrics["box_ap"])


def test_order_and_division_of_the_pictures_do_not_matter(scenes: CocoDataset, tmp_path: Path) -> None:
    found = noisy(scenes)
    first = score(scenes, found, tmp_path / "a")
    assert score(scenes, found[::-1], tmp_path / "b") == pytest.approx(first)
    for kind in ("bbox", "segm"):
        assert (tmp_path / "a" / f"val.{kind}.json").read_bytes() == (tmp_path / "b" / f"val.{kind}.json").read_bytes()


def test_perfect_detections_are_perfect_whatever_the_ids(tmp_path: Path) -> None:
    """pycocotools takes id 0 for no match (0.25 in place of 1.0), and looks repeated ids up as the last one."""
    config = write_coco(tmp_path / "coco", [grey(60, 40)], [box(1, 2, 2, 20, 10), box(1, 30, 10, 20, 20)])
    path = Path(str(config.root)) / "annotations" / "instances_val2017.json"
    corners = np.array([[2.0, 2, 22, 12], [30, 10, 50, 30]])
    found = [Found(0, corners, np.array([0.9, 0.8]), np.array([1, 1]))]
    for ids in ((0, 1), (5, 5)):
        content = json.loads(path.read_text())
        for record, key in zip(content["annotations"], ids, strict=True):
            record["id"] = key
        path.write_text(json.dumps(content))
        assert score(build_dataset(config, "val"), found, kinds=("box",))["box_ap"] == pytest.approx(100)


def test_nothing_found_is_zero(scenes: CocoDataset, tmp_path: Path) -> None:
    empty = Found(0, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype=np.int64), [])
    metrics = score(scenes, [replace(empty, index=i) for i in range(len(scenes))], tmp_path)
    assert metrics["box_ap"] == metrics["mask_ap"] == 0
    assert (tmp_path / "val.bbox.json").read_text() == "[]"


def test_a_box_that_is_not_a_number_is_no_match(scenes: CocoDataset) -> None:
    """To pycocotools it fits everything: AP 1."""
    found = [
        Found(i, np.full((1, 4), np.nan), np.ones(1), np.ones(1, dtype=np.int64), [b""]) for i in range(len(scenes))
    ]
    assert score(scenes, found, kinds=("box",))["box_ap"] == 0


def test_a_picture_has_a_hundred_detections_over_all_classes(tmp_path: Path) -> None:
    config = write_coco(tmp_path / "coco", [grey(60, 40)], [box(1, 2, 2, 20, 10)])
    dataset = build_dataset(config, "val")
    corners = np.repeat([[30.0, 2, 50, 12]], 150, 0)
    metric = AveragePrecision(dataset, kinds=("box",))
    metric.add(Found(0, corners, np.linspace(0, 1, 150), np.ones(150, dtype=np.int64)))
    (kept,) = metric.found
    assert len(kept.scores) == MOST
    assert kept.scores.min() == pytest.approx(50 / 149)


def test_only_the_evaluated_pictures_are_scored(tmp_path: Path) -> None:
    config = write_coco(tmp_path / "coco", [grey(60, 40)] * 2, [box(1, 2, 2, 20, 10), box(2, 2, 2, 20, 10)])
    found = [Found(0, np.array([[2.0, 2, 22, 12]]), np.ones(1), np.ones(1, dtype=np.int64))]
    metrics = score(build_dataset(config, "val"), found, kinds=("box",))
    assert metrics["box_ap"] == pytest.approx(100)
    assert metrics["pictures"] == 1


def test_the_size_of_a_mask_is_its_own(tmp_path: Path) -> None:
    """A triangle of 800 pixels in a box of 1,600 is small; with a box in the record pycocotools takes it for medium."""
    triangle = [[0, 0, 40, 0, 0, 40]]
    record = box(1, 0, 0, 40, 40, segmentation=triangle, area=800.0)
    config = write_coco(tmp_path / "coco", [grey(60, 48)], [record])
    dataset = build_dataset(config, "val")
    mask = dataset.parts[0].index.masks[0]
    found = [Found(0, np.array([[0.0, 0, 40, 40]]), np.ones(1), np.ones(1, dtype=np.int64), [mask])]
    metrics = score(dataset, found)
    assert metrics["mask_ap_small"] == pytest.approx(100)
    assert "mask_ap_medium" not in metrics


def test_masks_are_pasted_exactly() -> None:
    """Against grid_sample at the centres of the pixels."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(28, 28, generator=generator)
    for corners in ((3.3, 5.7, 40.2, 30.9), (-4.0, -2.5, 20.0, 33.0), (50.0, 10.0, 64.0, 48.0), (5.2, 5.2, 5.6, 5.5)):
        box = torch.tensor(corners)
        ys, xs = torch.arange(48) + 0.5, torch.arange(64) + 0.5
        grid_y = (ys - box[1]) / (box[3] - box[1]) * 2 - 1
        grid_x = (xs - box[0]) / (box[2] - box[0]) * 2 - 1
        grid = torch.stack(torch.meshgrid(grid_y, grid_x, indexing="ij")[::-1], 2)[None]
        sampled = torch.nn.functional.grid_sample(mask[None, None], grid, align_corners=False)[0, 0]
        inside = (sampled >= 0.5).numpy()
        ours = paste_mask(mask, box, (48, 64)).astype(bool)
        # Beyond the box grid_sample fades out over half a cell, where we cut to whole pixels of the box.
        top, bottom, left, right = (
            int(max(corners[1], 0)),
            int(np.ceil(corners[3])),
            int(max(corners[0], 0)),
            int(np.ceil(corners[2])),
        )
        window = (slice(top, bottom), slice(left, right))
        np.testing.assert_array_equal(ours[window], inside[window])
        assert ours.sum() == ours[window].sum()
    (encoded,) = encode_masks(mask[None], box[None], (48, 64))
    np.testing.assert_array_equal(rle.decode({"size": [48, 64], "counts": encoded}), ours)
