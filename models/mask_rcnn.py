"""The detectors of the paper's Table 3: Mask R-CNN on ResNet-50 and Faster R-CNN on DetNAS-300M, both with an FPN."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import resnet50
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from models.detector import Detector
from models.detnas import CHANNELS, DetNASBackbone, initialise

NORMS = ("batch", "frozen")
RESNET_CHANNELS = (256, 512, 1024, 2048)
RESNET_STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")  # stage 1 is conv1 with its norm
# The laterals of C4 and C5 (D8); in front of a norm a lateral is the first of two layers.
LATERALS = ("backbone.fpn.inner_blocks.2.0", "backbone.fpn.inner_blocks.3.0")


class Pyramid(nn.Module):
    """A network that gives four maps, and the FPN on them: maps "0" to "3" and "pool" of equal channels.

    Args:
        body: pictures to maps at strides 4 to 32.
        in_channels: of these maps.
        out_channels: of the pyramid.
        norm: makes a norm for every convolution of the FPN; None for none.
    """

    def __init__(
        self, body: nn.Module, in_channels: tuple[int, ...], out_channels: int, norm: type[nn.Module] | None
    ) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork(list(in_channels), out_channels, LastLevelMaxPool(), norm)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(self.body(x))


def build_mask_rcnn(
    width: float = 1.0,
    num_classes: int = 80,
    *,
    norm: str = "batch",
    rois: int = 512,
    stride_in_1x1: bool = False,
) -> Detector:
    """Mask R-CNN on ResNet-50 with an FPN and the 4conv1fc box head.

    ``replaceable_layers`` names the two laterals that the paper's DRConv takes the place of (D8).

    Args:
        width: factor on the channels of FPN and heads; the body keeps its own.
        num_classes: K, without background.
        norm: "batch" in body, FPN and heads; "frozen" in the body, and none elsewhere.
        rois: sampled regions a picture in training.
        stride_in_1x1: whether a stage's stride is in the first 1x1 of its first block, as in the weights of
            ResNet's authors, and not in the 3x3.

    Raises:
        ValueError: the norm is unknown.
    """
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; use one of {', '.join(NORMS)}")
    resnet = resnet50(norm_layer=FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d)
    if stride_in_1x1:
        _stride_first(resnet)
    body = IntermediateLayerGetter(resnet, {f"layer{i + 1}": str(i) for i in range(4)})
    channels, layer = _channels(width), nn.BatchNorm2d if norm == "batch" else None
    network = Detector(
        Pyramid(body, RESNET_CHANNELS, channels, layer),
        channels,
        num_classes,
        rois=rois,
        norm=layer,
        representation=4 * channels,
    )
    network.replaceable_layers = list(LATERALS)
    network.backbone_prefix = "backbone.body."
    return network


def build_detnas_fpn(
    width: float = 1.0,
    num_classes: int = 80,
    *,
    norm: str = "batch",
    rois: int = 512,
    stride_in_1x1: bool = False,
) -> Detector:
    """Faster R-CNN on DetNAS-300M with an FPN and the 4conv1fc box head; batch norm everywhere, as its authors have it.

    ``replaceable_layers`` names the 1x1 convolutions of the body's main branches.

    Args:
        width: factor on the channels of FPN and heads.
        num_classes: K, without background.
        norm: "batch".
        rois: sampled regions a picture in training.
        stride_in_1x1: False; DetNAS has no such choice.

    Raises:
        ValueError: another norm or stride is asked for.
    """
    if norm != "batch" or stride_in_1x1:
        raise ValueError("detnas_300m_fpn has model.detector.norm=batch and model.detector.stride_in_1x1=false only")
    body, channels = DetNASBackbone(), _channels(width)
    initialise(body)
    network = Detector(
        Pyramid(body, CHANNELS, channels, nn.BatchNorm2d),
        channels,
        num_classes,
        rois=rois,
        with_masks=False,
        norm=nn.BatchNorm2d,
        representation=4 * channels,
    )
    network.replaceable_layers = [f"backbone.body.{name}" for name in body.replaceable_layers]
    network.backbone_prefix = "backbone.body."
    return network


def freeze_stages(network: Detector, stages: int) -> None:
    """Freezes the first stages of a ResNet body: no gradients, and norms that are constants.

    ``requires_grad=False`` alone would leave the norms to go on with each batch's statistics.

    Args:
        network: from ``build_mask_rcnn``.
        stages: 0 to 5; 1 is the first convolution, 2 the first group of blocks too.
    """
    body = network.backbone.body
    for name in RESNET_STAGES[:stages]:
        names = [name, "bn1"] if name == "conv1" else [name]
        for part in names:
            body[part] = _frozen(body[part])
            body[part].requires_grad_(False)


def _frozen(module: nn.Module) -> nn.Module:
    """The module with its batch norms turned into constants."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        state = {name: x for name, x in module.state_dict().items() if name != "num_batches_tracked"}
        frozen.load_state_dict(state)
        return frozen.to(module.weight.device)
    for name, child in module.named_children():
        setattr(module, name, _frozen(child))
    return module


def _stride_first(resnet: nn.Module) -> None:
    for stage in RESNET_STAGES[2:]:
        block = resnet.get_submodule(f"{stage}.0")
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride  # type: ignore[union-attr]


def _channels(width: float) -> int:
    """256 times the width, in multiples of 8."""
    return max(8, round(256 * width / 8) * 8)
