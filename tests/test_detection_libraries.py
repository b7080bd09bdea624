"""DRConv in torchvision's other detectors and segmentation networks: forward, backward, inference."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection, mobilenet_v3_small, segmentation
from torchvision.models.detection.backbone_utils import _mobilenet_extractor
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.lraspp import LRASPP

from drconv.nn import DRConv2d, is_pointwise, substitute

TARGET = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}]


def pyramid() -> nn.Module:
    """MobileNetV3 with torchvision's FPN, to stand for its ResNets at a tenth of the cost."""
    body = mobilenet_v3_small(weights=None)
    return _mobilenet_extractor(body, fpn=True, trainable_layers=6)


def fcos() -> nn.Module:
    anchors = detection.anchor_utils.AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    return detection.FCOS(pyramid(), 3, min_size=64, max_size=64, anchor_generator=anchors)


def retinanet() -> nn.Module:
    anchors = detection.anchor_utils.AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
    return detection.RetinaNet(pyramid(), 3, min_size=64, max_size=64, anchor_generator=anchors)


def features(names: dict[str, str]) -> nn.Module:
    body = mobilenet_v3_small(weights=None, dilated=True).features
    return segmentation.deeplabv3.IntermediateLayerGetter(body, names)


def deeplab() -> nn.Module:
    return DeepLabV3(features({"12": "out"}), DeepLabHead(576, 3))


def lraspp() -> nn.Module:
    return LRASPP(features({"3": "low", "12": "high"}), 24, 576, 3)


def detector_loss(network: nn.Module, x: Tensor) -> Tensor:
    return sum(network([x[0]], TARGET).values())  # type: ignore[return-value]


def segmentation_loss(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)["out"].square().mean()


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Any]] = {
    "fcos": (fcos, ["backbone.fpn.inner_blocks.*"], detector_loss),
    "retinanet": (retinanet, ["backbone.fpn.*_blocks.*"], detector_loss),
    "deeplabv3": (deeplab, ["classifier.0.convs.*", "classifier.0.project.0"], segmentation_loss),
    "lraspp": (lraspp, lambda name, module: "backbone" in name and is_pointwise(name, module), segmentation_loss),
}


@pytest.mark.parametrize("name", CASES)
def test_substitute_works_in_networks_beyond_the_table(name: str) -> None:
    torch.manual_seed(0)
    build, layers, loss = CASES[name]
    network = build()
    table = substitute(network, "drconv", layers, regions=2, input_size=64)
    assert any(isinstance(module, DRConv2d) for module in network.modules())
    assert len(table) >= 2
    x = torch.randn(2, 3, 64, 64)
    loss(network.train(), x).backward()
    used = [p.grad for module in network.modules() if isinstance(module, DRConv2d) for p in [module.weight]]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in used)
    network.eval()
    with torch.no_grad():
        first, again = network(x), network(x)
    for one, two in zip(_tensors(first), _tensors(again), strict=True):
        assert torch.isfinite(one.float()).all()
        assert one.equal(two)


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, dict):
        return list(output.values())
    return [value for one in output for value in one.values()]
