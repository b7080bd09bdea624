"""Samples: pictures with boxes and masks through resizing, flips and batches, against pycocotools and torchvision."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle
from torchvision.datasets import CocoDetection

from drconv.config import DataConfig
from drconv.data import train_loader
from drconv.errors import DataError
from drconv.tasks.detection import transforms
from drconv.tasks.detection.dataset import CocoDataset, build_dataset
from drconv.tasks.detection.runs import decode_mask
from drconv.tasks.detection.transforms import Change
from tests.coco import box, grey, scenes_root, write_coco

COCO128 = Path(__file__).parents[2] / "shared" / "data" / "coco128.tar"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCONV_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (800, 1067)), ((360, 640), (750, 1333)), ((640, 427), (1199, 800)), ((4000, 100), (1333, 33))],
)
def test_sizes_are_those_of_detectron2(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert transforms.fit(size, 800, 1333) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.integers(5, 40), st.integers(5, 40))
def test_boxes_stay_around_their_masks(seed: int, is_flipped: bool, rows: int, columns: int) -> None:
    """A rectangle's mask, resized and flipped, fills its box, resized and flipped, to a pixel."""
    random = np.random.default_rng(seed)
    before = (int(random.integers(8, 60)), int(random.integers(8, 60)))
    top, left = int(random.integers(0, before[0] - 4)), int(random.integers(0, before[1] - 4))
    bottom, right = int(random.integers(top + 4, before[0] + 1)), int(random.integers(left + 4, before[1] + 1))
    mask = np.zeros(before, dtype=np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    change = Change((rows, columns), is_flipped)
    (changed,) = transforms.change_masks([rle.encode(mask)["counts"]], before, change)
    (corners,) = transforms.change_boxes(torch.tensor([[left, top, right, bottom]]).float(), before, change)
    ys, xs = changed.nonzero().unbind(1)
    if len(xs):
        found = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
        assert (found - corners).abs().max() <= 1
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None].float(), (rows, columns))[0, 0].byte()
    torch.testing.assert_close(changed, expected.flip(1) if is_flipped else expected)


def test_restored_boxes_are_the_original_ones() -> None:
    boxes = torch.tensor([[3.0, 4.0, 500.0, 300.0]], dtype=torch.float64)
    changed = transforms.change_boxes(boxes, (480, 640), Change((800, 1067)))
    torch.testing.assert_close(transforms.restore_boxes(changed, (480, 640), (800, 1067)), boxes)
    assert transforms.restore_boxes(changed + 2000, (480, 640), (800, 1067)).tolist() == [[640, 480, 640, 480]]


def test_a_sample_is_a_function_of_its_seed(tmp_path: Path) -> None:
    config = write_coco(tmp_path / "coco", [grey(60, 40)], [box(1, 5, 5, 20, 10)])
    config.coco.sizes = [24, 28, 32]
    dataset = build_dataset(config, "train")
    shapes = set()
    for seed in range(20):
        one, two = dataset[(0, seed)], dataset[(0, seed)]
        assert one["image"].equal(two["image"])
        assert one["boxes"].equal(two["boxes"])
        shapes.add(tuple(one["image"].shape[1:]))
        flipped = one["boxes"][0, 0] > one["image"].shape[2] / 2
        assert bool(flipped) == bool(one["masks"][0, :, : one["image"].shape[2] // 3].sum() == 0)
    assert len(shapes) == 3


def test_pictures_without_objects(tmp_path: Path) -> None:
    """Training leaves them out, crowds alone are none; with keep_empty they have targets of the right shapes."""
    pictures = [grey(60, 40), grey(60, 40), grey(60, 40)]
    annotations = [box(2, 5, 5, 20, 10), box(3, 5, 5, 20, 10, iscrowd=1)]
    config = write_coco(tmp_path / "coco", pictures, annotations)
    assert len(build_dataset(config, "train")) == 1
    assert len(build_dataset(config, "val")) == 3
    config.coco.keep_empty = True
    dataset = build_dataset(config, "train")
    assert len(dataset) == 3
    for index in (0, 2):
        sample = dataset[(index, 0)]
        assert sample["boxes"].shape == (0, 4)
        assert sample["boxes"].dtype == torch.float32
        assert sample["labels"].shape == (0,)
        assert sample["masks"].shape == (0, *sample["image"].shape[1:])
    batch = dataset.collate([dataset[(i, 0)] for i in range(3)])
    assert batch["image"].shape == (3, 3, 32, 64)
    assert batch["sizes"] == [(32, 48)] * 3


def test_a_fraction_is_trained_on_and_seen_again(tmp_path: Path) -> None:
    """Every fourth picture, the empty ones left out of training alone; val stays whole."""
    pictures, full = [grey(60, 40)] * 9, [1, 2, 3, 4, 6, 7, 8, 9]
    config = write_coco(tmp_path / "coco", pictures, [box(picture, 5, 5, 20, 10) for picture in full])
    config.fraction = 0.25
    train, seen, val = (build_dataset(config, split) for split in ("train", "seen", "val"))
    keys = [[part.index.key(place) for part, place in map(one.locate, range(len(one)))] for one in (train, seen, val)]
    assert keys == [[1, 9], [1, 5, 9], list(range(1, 10))]
    assert "1 pictures without an object left out" in train.describe()
    assert (train.name, seen.name, val.name) == ("train", "seen", "val")
    assert "boxes" in train[(0, 0)]
    assert "boxes" not in seen[(0, 0)]


def test_an_object_without_a_mask_is_left_out_where_masks_are_needed(tmp_path: Path) -> None:
    annotations = [box(1, 5, 5, 20, 10), box(1, 5, 5, 20, 20, segmentation=[])]
    config = write_coco(tmp_path / "coco", [grey(60, 40)], annotations)
    assert len(build_dataset(config, "train")[(0, 0)]["boxes"]) == 1
    sample = build_dataset(config, "train", needs_masks=False)[(0, 0)]
    assert len(sample["boxes"]) == 2
    assert "masks" not in sample


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    config = write_coco(tmp_path / "coco", [grey(60, 40, mode)], [box(1, 5, 5, 20, 10)])
    image = build_dataset(config, "val")[(0, 0)]["image"]
    assert image.shape == (3, 32, 48)
    assert (image.float() - 90).abs().max() < 4


def test_exif_is_ignored_unless_asked_for(tmp_path: Path) -> None:
    """COCO's boxes refer to the stored pixels: a turned picture is another size than its annotations say."""
    picture = grey(60, 40)
    picture.getexif()[0x0112] = 6
    config = write_coco(tmp_path / "coco", [picture], [box(1, 5, 5, 20, 10)])
    assert build_dataset(config, "val")[(0, 0)]["image"].shape == (3, 32, 48)
    config.coco.exif = True
    with pytest.raises(DataError, match=r"1.jpg has 60 rows and 40 columns, and .* says 40 and 60"):
        build_dataset(config, "val")[(0, 0)]


def test_missing_files_show_the_layout(tmp_path: Path) -> None:
    config = DataConfig(name="coco", root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"expects .*annotations/instances_train2017\.json and the pictures in"):
        build_dataset(config, "train")
    config.coco.layout = "2014"
    with pytest.raises(FileNotFoundError, match=r"instances_minival2014\.json"):
        build_dataset(config, "val")


def test_what_an_evaluation_would_miss_is_said_before_training(tmp_path: Path) -> None:
    config = write_coco(tmp_path, [grey(60, 40), grey(60, 40)], [box(1, 5, 5, 20, 20)])
    (tmp_path / "val2017" / "2.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pictures that the annotation files list do not exist.*val2017/2\.jpg"):
        build_dataset(config, "val")
    file = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="no object but crowds"):
        build_dataset(config, "val")
    file.write_text(json.dumps(content | {"images": [], "annotations": []}))
    with pytest.raises(DataError, match=r"instances_val2017\.json has no picture$"):
        build_dataset(config, "val")


def test_the_lists_of_2014_are_two_files(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    config = write_coco(root, [grey(60, 40), grey(60, 40)], [box(1, 5, 5, 20, 10), box(2, 1, 1, 5, 5)])
    (root / "train2017").rename(root / "train2014")
    (root / "val2017").rename(root / "val2014")
    for old, new in (("train2017", "train2014"), ("val2017", "minival2014"), ("val2017", "valminusminival2014")):
        content = (root / "annotations" / f"instances_{old}.json").read_text()
        (root / "annotations" / f"instances_{new}.json").write_text(content)
    config.coco.layout = "2014"
    dataset = build_dataset(config, "train")
    assert len(dataset) == 4
    assert [dataset.locate(i)[0].folder.name for i in range(4)] == ["train2014", "train2014", "val2014", "val2014"]
    assert len(build_dataset(config, "val")) == 2


def test_micro_batches_hold_pictures_of_like_shape(tmp_path: Path) -> None:
    """Within an epoch no picture comes twice, whatever the groups."""
    pictures = [grey(40, 60)] * 5 + [grey(60, 40)] * 8
    config = write_coco(tmp_path / "coco", pictures, [box(i, 5, 5, 20, 10) for i in range(1, 14)])
    dataset = build_dataset(config, "train")
    batches = [batch["index"] for batch in train_loader(dataset, batch_size=2, num_steps=13)]
    first_epoch = [index for batch in batches[:6] for index in batch]
    assert len(first_epoch) == len(set(first_epoch))
    mixed = sum(len({index < 5 for index in batch}) > 1 for batch in batches)
    assert mixed <= 2  # one at the end of an epoch
    parts = [train_loader(dataset, batch_size=2, num_steps=13, rank=rank, world_size=2) for rank in range(2)]
    pairs = [one["index"] + two["index"] for one, two in zip(*parts, strict=True)]
    assert pairs == batches


def as_torchvision(dataset: CocoDataset) -> CocoDetection:
    part = dataset.parts[0]
    return CocoDetection(str(part.folder), str(part.index.path))


def assert_same_as_torchvision(dataset: CocoDataset, step: int = 1) -> int:
    """Boxes and masks of all objects that are trained on, read by torchvision's loader and pycocotools."""
    reference, compared = as_torchvision(dataset), 0
    for index in range(0, len(dataset), step):
        part, position = dataset.locate(index)
        place = reference.ids.index(part.index.key(position))
        picture, records = reference[place]
        records = [record for record in records if not record["iscrowd"]]
        chosen = [i for i in part.index.annotations(position) if part.index.trained[i]]
        assert len(chosen) == len(records)
        for i, record in zip(chosen, records, strict=True):
            assert part.index.boxes[i].tolist() == pytest.approx(record["bbox"])
            mask = decode_mask(part.index.masks[i], part.index.size(position))
            np.testing.assert_array_equal(mask, reference.coco.annToMask(record))
            compared += 1
        assert part.index.size(position) == (picture.height, picture.width)
    return compared


def test_scenes_are_what_torchvision_reads() -> None:
    dataset = build_dataset(DataConfig(name="coco", root=str(scenes_root())), "val")
    assert assert_same_as_torchvision(dataset) > 20
    assert sum(int(part.index.crowd.sum()) for part in dataset.parts) > 0


@pytest.mark.skipif(not COCO128.exists(), reason="needs coco128")
def test_coco128_is_what_torchvision_reads(tmp_path: Path) -> None:
    with tarfile.open(COCO128) as archive:
        archive.extractall(tmp_path, filter="data")
    dataset = build_dataset(DataConfig(name="coco", root=str(tmp_path / "coco128")), "train")
    assert assert_same_as_torchvision(dataset, step=6) > 50
    assert int(dataset.parts[0].index.trained.sum()) == 741  # 747, six of them crowds
    assert len(dataset) == 98  # of 100, two without annotations
    assert len(dataset.categories) == 80
