"""MobileNetV1 cut to four blocks, for the test bed: a network so small that it stops gaining within minutes.

Its pointwise convolutions hold most of what it can learn, all of them are replaced, and its maps have room for regions.
"""

from torch import Tensor, nn

from .classifier import Classifier, halve_strides, levels

STEM = 8  # channels
BLOCKS = ((12, 1), (16, 1), (24, 2), (32, 1))  # output channels and stride of the depthwise convolution
DIVISOR = 2  # of the channels


class ShortMobileNetV1(Classifier):
    """Stem of stride 2, four separable blocks, average pooling: pictures (B, 3, H, W) to logits (B, num_classes).

    At 32 pixels the blocks work on maps of 16, 16, 8 and 8. ``replaceable_layers`` names the four 1x1 convolutions.

    Args:
        width: factor on all channels.
        num_classes: number of classes.
        small_stem: stride 1 in the first convolution.
        dropout: rate before the classifier; None for none.
    """

    classifier_name = "classifier"

    def __init__(
        self, width: float = 1.0, num_classes: int = 1000, small_stem: bool = False, dropout: float | None = None
    ) -> None:
        super().__init__()
        channels = _scale(STEM, width)
        stem = nn.Conv2d(3, channels, 3, stride=1 if small_stem else 2, padding=1, bias=False)
        layers = [nn.Sequential(stem, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))]
        for out_channels, stride in BLOCKS:
            layers.append(_block(channels, _scale(out_channels, width), stride))
            channels = _scale(out_channels, width)
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout or 0.0)
        self.classifier = nn.Linear(channels, num_classes)
        self.num_classes, self.num_features = num_classes, channels
        widths = [_scale(count, width) for count in (STEM, *(count for count, _ in BLOCKS))]
        self.feature_info = levels([f"features.{i}" for i in range(len(layers))], widths, [2, 2, 2, 4, 4])
        if small_stem:
            halve_strides(self)
        self.replaceable_layers = [f"features.{block}.3" for block in range(1, len(layers))]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(x))


def _scale(channels: int, width: float) -> int:
    return max(DIVISOR, round(channels * width / DIVISOR) * DIVISOR)


def _block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
