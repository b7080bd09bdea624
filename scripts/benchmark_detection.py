"""Time detectors with DRConv against plain ones, and the COCO loader against torchvision's pipeline.

    python scripts/benchmark_detection.py networks --size 256
    python scripts/benchmark_detection.py loader --root /data/coco

Times are this process's CPU time on one thread, and the sides take turns, so that a busy machine slows all of them
alike. The ratios of the medians count, not the seconds.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torchvision import tv_tensors
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models import detection, segmentation
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from drconv.config import DataConfig, DetectorConfig, DRConvConfig, ModelConfig
from drconv.nn import is_pointwise, substitute
from drconv.tasks.detection.dataset import build_dataset
from models import create_model

Side = Callable[[], Any]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.what == "loader":
        report("loader", "torchvision", time_sides(loader_sides(options.root, options.pictures), options.rounds))
        return
    for name, (plain, drconv, loss) in networks(options.size).items():
        pictures = torch.randn(1, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)
        for mode, sides in (
            ("training step", {"plain": training(plain, pictures, loss), "drconv": training(drconv, pictures, loss)}),
            ("inference", {"plain": inference(plain, pictures), "drconv": inference(drconv, pictures)}),
        ):
            report(f"{name}, {mode}", "plain", time_sides(sides, options.rounds))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("networks", "loader"))
    parser.add_argument("--root", type=Path, help="COCO's folder, for the loader")
    parser.add_argument("--pictures", type=int, default=40, help="pictures of a round, for the loader")
    parser.add_argument("--size", type=int, default=256, help="pixels of a picture's side, for the networks")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, each with every side")
    return parser.parse_args()


def networks(size: int) -> dict[str, tuple[nn.Module, nn.Module, Callable[[nn.Module, Tensor], Tensor]]]:
    """Name to plain network, the same with DRConv of 8 regions, and its loss."""
    mask_rcnn = [
        create_model(
            ModelConfig("mask_rcnn_r50", conv=conv, drconv=DRConvConfig(regions=8), detector=DetectorConfig(rois=64)),
            80,
            None,
        )
        for conv in ("standard", "drconv")
    ]
    plain = {"weights": None, "weights_backbone": None}
    laterals = ["backbone.fpn.inner_blocks.*"]
    sized = {**plain, "min_size": size, "max_size": size, "num_classes": 81}
    return {
        "Mask R-CNN R50, 2 laterals": (mask_rcnn[0], mask_rcnn[1], own_loss),
        "FCOS R50, laterals": (*pair(lambda: detection.fcos_resnet50_fpn(**sized), laterals), library_loss),
        "RetinaNet R50, laterals": (*pair(lambda: detection.retinanet_resnet50_fpn(**sized), laterals), library_loss),
        "DeepLabV3 R50, 1x1 of the last stage": (
            *pair(lambda: segmentation.deeplabv3_resnet50(**plain, num_classes=21), ["backbone.layer4.*.conv[13]"]),
            segmentation_loss,
        ),
        "LR-ASPP MobileNetV3, all 1x1 of the body": (
            *pair(lambda: segmentation.lraspp_mobilenet_v3_large(**plain, num_classes=21), in_body),
            segmentation_loss,
        ),
    }


def pair(build: Callable[[], nn.Module], layers: Any) -> tuple[nn.Module, nn.Module]:
    """A network as it is, and with DRConv."""
    plain, replaced = build(), build()
    substitute(replaced, "drconv", layers, regions=8, input_size=64)
    return plain.to(memory_format=torch.channels_last), replaced.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def in_body(name: str, module: nn.Module) -> bool:
    return name.startswith("backbone") and ".fc" not in name and is_pointwise(name, module)


def target(size: int, with_masks: bool = False) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.8]]) * size
    masks = {"masks": torch.ones(2, size, size, dtype=torch.uint8)} if with_masks else {}
    return [{"boxes": boxes, "labels": torch.tensor([1, 2]), **masks}]


def own_loss(network: nn.Module, x: Tensor) -> Tensor:
    return torch.stack(list(network(x, None, target(x.shape[2], True)).values())).sum()


def library_loss(network: nn.Module, x: Tensor) -> Tensor:
    return torch.stack(list(network(list(x), target(x.shape[2])).values())).sum()


def segmentation_loss(network: nn.Module, x: Tensor) -> Tensor:
    return network(torch.cat([x, x]))["out"].square().mean()


def training(network: nn.Module, x: Tensor, loss: Callable[[nn.Module, Tensor], Tensor]) -> Side:
    def step() -> None:
        network.train()
        loss(network, x).backward()
        network.zero_grad()

    return step


def inference(network: nn.Module, x: Tensor) -> Side:
    def run() -> None:
        network.eval()
        with torch.inference_mode():
            network(x)

    return run


def loader_sides(root: Path, pictures: int) -> dict[str, Side]:
    """Decoding, 800/1333, flip, boxes and masks of the same pictures."""
    ours = build_dataset(DataConfig(name="coco", root=str(root)), "train")
    part = ours.parts[0]
    raw = CocoDetection(str(part.folder), str(part.index.path))
    keys = ("boxes", "labels", "masks")
    theirs = wrap_dataset_for_transforms_v2(raw, target_keys=keys)
    transform = v2.Compose(
        [
            v2.ToImage(),
            v2.RandomShortestSize(800, 1333),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.uint8, "others": None}),
            v2.SanitizeBoundingBoxes(),
        ]
    )
    order = list(range(0, len(ours), max(1, len(ours) // pictures)))[:pictures]
    places = [raw.ids.index(part.index.key(ours.locate(i)[1])) for i in order]

    def reference() -> None:
        for place in places:
            picture, record = theirs[place]
            transform(picture, record)

    return {"torchvision": reference, "drconv": lambda: [ours[(i, i)] for i in order]}


def time_sides(sides: dict[str, Side], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            begin = time.process_time()
            side()
            if number:
                seconds[name].append(time.process_time() - begin)
    return seconds


def report(title: str, base: str, seconds: dict[str, list[float]]) -> None:
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    other = next(name for name in medians if name != base)
    pairs = [b / a for a, b in zip(seconds[base], seconds[other], strict=True)]
    ratio = f"{medians[other] / medians[base]:.3f} ({min(pairs):.3f} to {max(pairs):.3f})"
    print(f"{title}: {base} {medians[base]:.3f} s, {other} {medians[other]:.3f} s; ratio {ratio}", flush=True)


if __name__ == "__main__":
    main()
