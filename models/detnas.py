"""DetNAS-300M: the backbone that its authors searched for detection, and the ImageNet classifier it starts as.

Blocks and channels are those of the authors' code (``maskrcnn_benchmark/modeling/backbone/detnasnet.py``); the blocks
are ShuffleNetV2's with larger windows, and a deeper one with three depthwise convolutions.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .classifier import Classifier, halve_strides, levels
from .shufflenetv2 import split_shuffled

STEM = 16
CHANNELS = (64, 160, 320, 640)  # of the four stages, at strides 4, 8, 16 and 32
# A block a digit: 0, 1 and 2 are shuffle blocks with windows of 3, 5 and 7, 3 is the deeper block.
CODES = ("2120", "2112", "33130031", "3132")
LAST = 1024
DEEP = 3


def _pointwise(in_channels: int, out_channels: int, is_activated: bool = True) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]
    return [*layers, nn.ReLU(inplace=True)] if is_activated else layers


def _depthwise(channels: int, window: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, window, stride, padding=window // 2, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class DetNASBlock(nn.Module):
    """Half of the channels pass, the others go through ``main``; with stride 2 all go through both branches.

    Args:
        in_channels: C.
        out_channels: O.
        stride: 1 or 2.
        code: 0, 1, 2 or 3, see ``CODES``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, code: int) -> None:
        super().__init__()
        self.stride = stride
        inputs = in_channels if stride == 2 else in_channels // 2
        middle, outputs = out_channels // 2, out_channels - inputs
        window = 3 if code == DEEP else 3 + 2 * code
        projection = [*_depthwise(inputs, window, stride), *_pointwise(inputs, inputs)] if stride == 2 else []
        self.projection = nn.Sequential(*projection)
        if code == DEEP:
            layers = [*_depthwise(inputs, window, stride), *_pointwise(inputs, middle)]
            layers += [*_depthwise(middle, window), *_pointwise(middle, middle), *_depthwise(middle, window)]
        else:
            layers = [*_pointwise(inputs, middle), *_depthwise(middle, window, stride)]
        self.main = nn.Sequential(*layers, *_pointwise(middle, outputs))

    def forward(self, x: Tensor) -> Tensor:
        passed, used = (x, x) if self.stride == 2 else split_shuffled(x)
        return torch.cat([self.projection(passed), self.main(used)], dim=1)


class DetNASBackbone(nn.Module):
    """Pictures (B, 3, H, W) to the maps of the four stages, "0" to "3", at strides 4 to 32.

    ``replaceable_layers`` names the 46 1x1 convolutions of the main branches; the four projections stay, as in
    ShuffleNetV2 (D3).
    """

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(3, STEM, 3, stride=2, padding=1)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(STEM), nn.ReLU(inplace=True))
        channels = (STEM, *CHANNELS)
        self.stages = nn.ModuleList(
            _stage(before, after, codes) for before, after, codes in zip(channels, CHANNELS, CODES, strict=False)
        )
        self.replaceable_layers = [
            name for name, module in self.named_modules() if ".main." in name and _is_pointwise(module)
        ]

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x = self.stem(x)
        maps: OrderedDict[str, Tensor] = OrderedDict()
        for index, stage in enumerate(self.stages):
            x = maps[str(index)] = stage(x)
        return maps


class DetNAS(Classifier):
    """The classifier: pictures (B, 3, H, W) to logits (B, num_classes). 321.2M multiply-adds at 224 pixels.

    Args:
        num_classes: number of classes.
        dropout: rate of whole channels before the classifier.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.body = DetNASBackbone()
        conv = nn.Conv2d(CHANNELS[-1], LAST, 1)
        self.head = nn.Sequential(conv, nn.BatchNorm2d(LAST), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(LAST, num_classes)
        self.num_classes, self.num_features = num_classes, LAST
        names = ["body.stem", *(f"body.stages.{stage}" for stage in range(len(CHANNELS)))]
        self.feature_info = levels(names, [STEM, *CHANNELS], [2, 4, 8, 16, 32])
        self.replaceable_layers = [f"body.{name}" for name in self.body.replaceable_layers]
        initialise(self)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)["3"])  # the authors drop its channels; ours drops their means, which is the same


def initialise(network: nn.Module) -> None:
    """The start of the ShuffleNet family, see ``models.shufflenetv2``: 1/fan-in channels; 0.01 for the first layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01 if module.in_channels == 3 else 1.0 / module.weight.shape[1])
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.bias, 1e-4)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def build_detnas(
    width: float = 1.0, num_classes: int = 1000, small_stem: bool = False, dropout: float | None = None
) -> DetNAS:
    """Builds DetNAS-300M, which has one size.

    Raises:
        ValueError: another width is asked for.
    """
    if width != 1.0:
        raise ValueError(f"detnas_300m has model.width=1.0, found {width}")
    network = DetNAS(num_classes, 0.2 if dropout is None else dropout)
    if small_stem:
        network.body.stem[0].stride = (1, 1)  # type: ignore[assignment]
        halve_strides(network)
    return network


def _stage(in_channels: int, out_channels: int, codes: str) -> nn.Sequential:
    blocks = [DetNASBlock(in_channels, out_channels, 2, int(codes[0]))]
    blocks += [DetNASBlock(out_channels, out_channels, 1, int(code)) for code in codes[1:]]
    return nn.Sequential(*blocks)


def _is_pointwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
