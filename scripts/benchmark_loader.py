"""Time the training pipeline on one core against torchvision's reference and timm's: same files, same augmentation.

    python scripts/benchmark_loader.py --root DIR/imagenette144/train --size 128
    python scripts/benchmark_loader.py --root /data/imagenet/train --json

Every side decodes, crops, jitters, flips and collates to a uint8 batch in this process; normalising is left out, since
each does it elsewhere. Times are this process's CPU time, and the sides take turns within a round, so that a busy
machine slows all of them alike.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import timm.data
import torch
from timm.data.loader import fast_collate
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.config import AugmentConfig, DataConfig
from drconv.data import train_loader
from drconv.data.index import scan_class_folders
from drconv.tasks.classification import build_dataset

BATCH_SIZE = 64
JITTER = 0.4


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        link_pictures(options.root, Path(folder), options.pictures)
        sides = {
            "drconv": drconv_side(folder, options.size),
            "torchvision": torchvision_side(folder, options.size),
            "timm": timm_side(folder, options.size),
        }
        seconds = time_alternating(sides, options.rounds)
    report(seconds, options)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--size", type=int, default=224, help="pixels of the side of the network's input")
    parser.add_argument("--pictures", type=int, default=512, help="pictures of one round, a multiple of 64")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def link_pictures(root: Path, folder: Path, count: int) -> None:
    """Link ``count`` random pictures of ``root`` into ``folder``/train, so that all sides read the same ones."""
    index = scan_class_folders(root)
    for position in random.Random(0).sample(range(len(index)), min(count, len(index))):
        link = folder / "train" / index.name(position)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(index.path(position)).resolve())


def drconv_side(folder: str, size: int) -> Callable[[], Iterable[Any]]:
    augment = AugmentConfig(jitter=[JITTER] * 3)
    config = DataConfig(name="imagefolder", root=folder, image_size=size, eval_resize=size, augment=augment)
    dataset = build_dataset(config, "train")
    return lambda: train_loader(dataset, batch_size=BATCH_SIZE, num_steps=len(dataset) // BATCH_SIZE)


def torchvision_side(folder: str, size: int) -> Callable[[], Iterable[Any]]:
    """The transforms of torchvision's classification reference (Pillow backend) with the recipe's jitter added."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.ColorJitter(JITTER, JITTER, JITTER),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
    )
    dataset = ImageFolder(f"{folder}/train", transform)
    return lambda: DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True)


def timm_side(folder: str, size: int) -> Callable[[], Iterable[Any]]:
    transform = timm.data.create_transform(
        size, is_training=True, use_prefetcher=True, color_jitter=JITTER, interpolation="bilinear"
    )
    dataset = timm.data.ImageDataset(f"{folder}/train", transform=transform)
    return lambda: DataLoader(dataset, BATCH_SIZE, shuffle=True, drop_last=True, collate_fn=fast_collate)


def time_alternating(sides: dict[str, Callable[[], Iterable[Any]]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds per picture of each side in each round; a first round warms up and is not kept."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, make_loader in sides.items():
            begin = time.process_time()
            batches = sum(1 for _ in make_loader())
            if number:
                seconds[name].append((time.process_time() - begin) / (batches * BATCH_SIZE))
    return seconds


def report(seconds: dict[str, list[float]], options: argparse.Namespace) -> None:
    own = statistics.median(seconds["drconv"])
    rows = {
        name: {
            "ms_per_picture": round(statistics.median(values) * 1e3, 3),
            "fastest": round(min(values) * 1e3, 3),
            "slowest": round(max(values) * 1e3, 3),
            "pictures_per_s": round(1 / statistics.median(values)),
            "time_over_ours": round(statistics.median(values) / own, 2),
        }
        for name, values in seconds.items()
    }
    if options.json:
        print(json.dumps({"root": str(options.root), "size": options.size, "rounds": options.rounds, "sides": rows}))
        return
    columns = list(rows["drconv"])
    print(f"{'one core':12}" + "".join(f"{column:>16}" for column in columns))
    for name, row in rows.items():
        print(f"{name:12}" + "".join(f"{row[column]:>16}" for column in columns))


if __name__ == "__main__":
    main()
