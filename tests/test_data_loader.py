"""Batches: the same bits on any number of workers and after a restart; the embedded and generated data; cuts."""

import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from drconv.config import AugmentConfig, DataConfig
from drconv.data import DataError, eval_loader, prepare, train_loader
from drconv.errors import ConfigError
from drconv.tasks.classification import build_dataset
from drconv.tasks.classification.dataset import balanced_choice

ROOT = Path(__file__).parents[1]
DIGITS = DataConfig(
    name="digits", image_size=16, eval_resize=16, augment=AugmentConfig(crop="pad", jitter=[0.4] * 3, rotate=9.0)
)


def generated(**changes: object) -> DataConfig:
    options: dict = {"name": "generated", "num_classes": 3, "num_generated": 50, "image_size": 16, "eval_resize": 20}
    return DataConfig(**(options | changes))


def assert_equal(ours: Iterable[dict[str, Tensor]], theirs: Iterable[dict[str, Tensor]]) -> None:
    for left, right in zip(ours, theirs, strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left)


def test_workers_and_restarts_change_no_bit() -> None:
    dataset = build_dataset(DIGITS, "train")
    options = {"batch_size": 100, "accumulate": 2, "seed": 4, "num_steps": 18}  # passes the end of an epoch
    whole = list(train_loader(dataset, **options))
    assert len(whole) == 36
    assert_equal(train_loader(dataset, **options, workers=2, start_step=13), whole[26:])
    assert whole[0]["image"].shape == (50, 3, 16, 16)
    assert whole[0]["image"].dtype == torch.uint8
    assert whole[0]["label"].dtype == torch.int64
    assert all(batch["valid"].all() for batch in whole)
    first, second = ({int(i) for batch in part for i in batch["index"]} for part in (whole[:28], whole[28:]))
    assert len(first) == 1400
    assert len(first | second) == 1437


def test_threads_change_no_bit() -> None:
    dataset = build_dataset(
        generated(image_size=200, eval_resize=256, augment=AugmentConfig(jitter=[0.4] * 3)), "train"
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = list(train_loader(dataset, batch_size=8, num_steps=2))
        torch.set_num_threads(3)
        assert_equal(train_loader(dataset, batch_size=8, num_steps=2), single)
    finally:
        torch.set_num_threads(threads)


def test_the_seed_changes_order_and_augmentation() -> None:
    dataset = build_dataset(generated(), "train")
    first, second = (next(iter(train_loader(dataset, batch_size=50, num_steps=1, seed=seed))) for seed in (0, 1))
    assert first["index"].tolist() != second["index"].tolist()
    at = [int((batch["index"] == 7).nonzero()) for batch in (first, second)]
    assert not torch.equal(first["image"][at[0]], second["image"][at[1]])


def test_evaluation_counts_every_sample_once_and_can_be_repeated() -> None:
    dataset = build_dataset(generated(), "val")
    loaders = [eval_loader(dataset, batch_size=8, rank=rank, world_size=3) for rank in range(3)]
    for _ in range(2):
        seen = [int(index) for loader in loaders for batch in loader for index in batch["index"]]
        assert sorted(seen) == list(range(50))
    with_workers = eval_loader(dataset, batch_size=8, rank=1, world_size=3, workers=1)
    for _ in range(2):
        assert_equal(with_workers, loaders[1])


def test_worker_error_is_one_line_with_the_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "train" / name / "good.png")
    (tmp_path / "train/b/bad.png").write_bytes(b"broken")
    dataset = build_dataset(DataConfig(name="imagefolder", root=str(tmp_path), image_size=8, eval_resize=8), "train")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^cannot decode .*bad\.png .*data\.broken=skip$"):
            list(train_loader(dataset, batch_size=3, num_steps=1, workers=workers))


def test_a_script_with_a_loader_ends_at_once() -> None:
    """Its loader process outlives the SIGTERM that Python ends it with and waits for, so it must be ended before.

    Handlers of the exit run in reverse order: the one below comes after the loaders' and before Python's own.
    """
    code = (
        "import atexit, multiprocessing.util\n"
        "atexit.register(lambda: print('left:', multiprocessing.active_children()))\n"
        "from drconv.config import DataConfig; from drconv.data import eval_loader\n"
        "from drconv.tasks.classification import build_dataset\n"
        "config = DataConfig(name='digits', image_size=8, eval_resize=8)\n"
        "batches = iter(eval_loader(build_dataset(config, 'val'), batch_size=8, workers=1)); next(batches)\n"
        "print('running:', len(multiprocessing.active_children()))"
    )
    outcome = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert outcome.stdout.splitlines() == ["running: 1", "left: []"], outcome.stderr


def test_a_killed_process_holds_nobody_up() -> None:
    """Not even where it held the lock that torch's own way to end the others takes."""
    loader = eval_loader(build_dataset(generated(), "val"), batch_size=2, workers=2)
    next(batches := iter(loader))
    (iterator,) = loader._iterators
    killed, other = iterator._workers
    killed.kill()
    killed.join()
    iterator._workers_done_event._cond.acquire()
    closing = threading.Thread(target=loader.close, daemon=True)
    closing.start()
    closing.join(timeout=60)
    assert not closing.is_alive()
    assert not other.is_alive()
    del batches


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_prepare_normalises_in_the_configured_order(order: str, channels_last: bool) -> None:
    config = DataConfig(name="digits", channel_order=order, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    image = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    batch = prepare({"image": image, "label": torch.tensor([3, 4])}, config, torch.device("cpu"), channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert batch["image"].is_contiguous(memory_format=layout)
    assert batch["label"].tolist() == [3, 4]
    swapped = image[:, [2, 1, 0]] if order == "bgr" else image
    expected = (swapped.double() - torch.tensor([1.0, 2, 3]).view(3, 1, 1)) / torch.tensor([4.0, 5, 6]).view(3, 1, 1)
    torch.testing.assert_close(batch["image"].double(), expected, rtol=1e-6, atol=1e-6)


def test_embedded_digits_are_scikit_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    config = DataConfig(name="digits", image_size=8, eval_resize=8)
    splits = [build_dataset(config, split) for split in ("train", "val")]
    assert [len(split) for split in splits] == [1437, 360]
    ours = {
        (split[(i, 0)]["label"], torch.as_tensor(split.source.read(i)[0]).numpy().tobytes())
        for split in splits
        for i in range(len(split))
    }
    scaled = torch.from_numpy(theirs.images * (255 / 16)).round().byte().numpy()
    assert ours == {(int(label), picture.tobytes()) for label, picture in zip(theirs.target, scaled, strict=True)}


def test_digits_split_is_balanced_and_fixed() -> None:
    val = build_dataset(DIGITS, "val")
    assert torch.bincount(val.labels.long()).tolist() == [36] * 10
    assert val.fingerprint()["sha256"] == build_dataset(DIGITS, "val", seed=5).fingerprint()["sha256"]
    assert val.classes == [str(digit) for digit in range(10)]


def test_generated_pictures_differ_by_split_and_share_the_classes() -> None:
    train, val = (build_dataset(generated(), split) for split in ("train", "val"))
    assert train.labels.tolist()[:4] == [0, 1, 2, 0]
    pictures = torch.stack([data.source.read(i).float() for data in (train, val) for i in (0, 3, 1)])
    distance = (pictures[:, None] - pictures).abs().mean(dim=(2, 3, 4))
    assert (distance + 1e3 * torch.eye(6)).min() > 1  # all six differ
    assert distance[0, 3] < distance[0, 2]  # the same class in the other split is nearer than another class
    with pytest.raises(ValueError, match=r"data\.num_classes"):
        build_dataset(generated(num_classes=None), "train")


def test_holdout_is_the_same_cut_for_every_seed() -> None:
    config = generated(num_generated=100, holdout=0.2)
    parts = [(build_dataset(config, "train", seed), build_dataset(config, "val", seed)) for seed in (0, 1)]
    (train, val), (other, _) = parts
    assert (len(train), len(val)) == (79, 21)
    assert train.positions is not None
    assert val.positions is not None
    assert sorted(train.positions.tolist() + val.positions.tolist()) == list(range(100))
    assert torch.equal(train.positions, other.positions)
    assert torch.equal(val.source.read(3), train.source.read(3))


def test_a_share_that_leaves_nothing_is_refused() -> None:
    for split, changes in (("train", {"fraction": 0.001}), ("val", {"holdout": 0.001}), ("train", {"holdout": 0.999})):
        with pytest.raises(ConfigError, match=r"leave no picture .*change data\.holdout or data\.fraction"):
            build_dataset(generated(**changes), split)


def test_fraction_keeps_classes_even_and_depends_on_the_seed() -> None:
    first, second = (build_dataset(generated(num_generated=300, fraction=0.1), "train", seed) for seed in (0, 1))
    assert torch.bincount(first.labels).tolist() == [10, 10, 10]
    assert first.positions is not None
    assert first.positions.tolist() != second.positions.tolist()  # type: ignore[union-attr]
    assert first.fingerprint()["pictures"] == 30
    assert len(build_dataset(generated(num_generated=300, fraction=0.1), "val")) == 300


@given(st.lists(st.integers(0, 4), max_size=60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_balanced_choice(labels: list[int], share: float, other: float, key: int) -> None:
    tensor = torch.tensor(labels, dtype=torch.int32)
    small, large = (balanced_choice(tensor, part, key) for part in sorted((share, other)))
    assert not (small & ~large).any()
    for label in set(labels):
        expected = round(labels.count(label) * min(share, other))
        assert int((small & (tensor == label)).sum()) == expected


def test_a_wrong_name_lists_the_right_ones() -> None:
    """Ranges and other choices are checked by ``drconv.config_check`` alone."""
    with pytest.raises(ConfigError, match="digits, imagefolder, imagenet, generated"):
        build_dataset(generated(name="imagenett"), "train")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_fit_the_schema(path: Path) -> None:
    assert path.read_text().removeprefix("# @package _global_\n").startswith("# python train.py ")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = OmegaConf.to_object(compose("train", ["model=shufflenetv2_0.25x", f"data={path.stem}"]).data)
    assert isinstance(config, DataConfig)
    if config.name in ("digits", "generated"):
        batch = next(iter(train_loader(build_dataset(config, "train"), batch_size=2, num_steps=1)))
        assert batch["image"].shape == (2, 3, config.image_size, config.image_size)
