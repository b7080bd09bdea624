"""The detectors of the paper's Table 3: Mask R-CNN on ResNet-50 and Faster R-CNN on DetNAS-300M, both with an FPN."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import resnet50
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.misc import FrozenBatchNorm2d

from drconv.config import DetectorConfig
from drconv.errors import ConfigError

from .detector import Detector
from .detnas import CHANNELS, DetNASBackbone, initialise

RESNET_CHANNELS = (256, 512, 1024, 2048)
RESNET_STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")  # stage 1 is conv1 with its norm
LATERALS = ("backbone.fpn.inner_blocks.2.0", "backbone.fpn.inner_blocks.3.0")  # the 1x1 of C4 and C5 (D8)


class ConstantNorm(FrozenBatchNorm2d):
    """torchvision's frozen batch norm, with the names of a batch norm: weights files fit frozen and learning networks.

    It is no batch norm to ``SyncBatchNorm.convert_sync_batchnorm``, which would bring it back to life.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def _load_from_state_dict(self, *arguments: Any) -> None:
        nn.Module._load_from_state_dict(self, *arguments)  # torchvision's own drops the counter


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

    def freeze_stages(self, stages: int) -> None:
        """Freezes the first stages of a ResNet body: no gradients, and norms that are constants.

        ``requires_grad=False`` alone would leave the norms to go on with each batch's statistics.

        Args:
            stages: 0 to 5; 1 is the first convolution, 2 the first group of blocks too.

        Raises:
            ConfigError: the body is no ResNet.
        """
        if stages and not isinstance(self.body, IntermediateLayerGetter):
            raise ConfigError(f"model.detector.frozen_stages={stages}, and only ResNet has such stages; set it to 0")
        for stage in RESNET_STAGES[:stages]:
            for name in ("conv1", "bn1") if stage == "conv1" else (stage,):
                frozen = _frozen(self.body.get_submodule(name))
                self.body.add_module(name, frozen.requires_grad_(False))


def build_mask_rcnn(width: float, num_classes: int, options: DetectorConfig) -> Detector:
    """Mask R-CNN on ResNet-50 with an FPN and the 4conv1fc box head.

    ``replaceable_layers`` names the two laterals that the paper's DRConv takes the place of (D8).

    Args:
        width: factor on the channels of FPN and heads; the body keeps its own.
        num_classes: K, without background.
        options: norm "batch" is in body, FPN and heads; "frozen" in the body, and the others have none.
    """
    is_frozen = options.norm == "frozen"
    resnet = resnet50(norm_layer=ConstantNorm if is_frozen else nn.BatchNorm2d)
    if options.stride_in_1x1:
        _stride_first(resnet)
    body = IntermediateLayerGetter(resnet, {f"layer{i + 1}": str(i) for i in range(4)})
    network = _detector(body, RESNET_CHANNELS, width, num_classes, options, None if is_frozen else nn.BatchNorm2d)
    network.replaceable_layers = list(LATERALS)
    return network


def build_detnas_fpn(width: float, num_classes: int, options: DetectorConfig) -> Detector:
    """Faster R-CNN on DetNAS-300M with an FPN and the 4conv1fc box head; batch norm everywhere, as its authors have it.

    ``replaceable_layers`` names the 1x1 convolutions of the body's main branches.

    Args:
        width: factor on the channels of FPN and heads.
        num_classes: K, without background.
        options: norm "batch" alone.

    Raises:
        ValueError: an option that only ResNet has.
    """
    if options.norm != "batch" or options.stride_in_1x1:
        raise ValueError("detnas_300m_fpn takes model.detector.norm=batch and model.detector.stride_in_1x1=false only")
    body = DetNASBackbone()
    initialise(body)
    network = _detector(body, CHANNELS, width, num_classes, options, nn.BatchNorm2d)
    network.replaceable_layers = [f"backbone.body.{name}" for name in body.replaceable_layers]
    return network


def _detector(
    body: nn.Module,
    in_channels: tuple[int, ...],
    width: float,
    num_classes: int,
    options: DetectorConfig,
    norm: type[nn.Module] | None,
) -> Detector:
    channels = max(8, round(256 * width / 8) * 8)
    backbone = Pyramid(body, in_channels, channels, norm)
    return Detector(
        backbone,
        channels,
        num_classes,
        rois=options.rois,
        with_masks=options.masks,
        norm=norm,
        representation=4 * channels,
    )


def _frozen(module: nn.Module) -> nn.Module:
    """The module with its batch norms turned into constants."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = ConstantNorm(module.num_features, eps=module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen.to(module.weight.device)
    for name, child in module.named_children():
        setattr(module, name, _frozen(child))
    return module


def _stride_first(resnet: nn.Module) -> None:
    for stage in RESNET_STAGES[2:]:
        block: Any = resnet.get_submodule(f"{stage}.0")
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride
