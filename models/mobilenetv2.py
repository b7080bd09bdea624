"""MobileNetV2 from torchvision, with all its 1x1 convolutions named as replaceable (D3)."""

from typing import Any

from torch import Tensor, nn
from torchvision.models import mobilenetv2

from .classifier import Classifier, halve_strides, levels

LEVELS = (1, 3, 6, 13, 17)  # the last block of every resolution


class MobileNetV2(Classifier, mobilenetv2.MobileNetV2):
    """torchvision's network; see ``build_mobilenetv2``."""

    classifier_name = "classifier.1"
    classifier: nn.Sequential
    features: Any
    last_channel: int
    replaceable_layers: list[str]

    def __init__(self, width: float, num_classes: int, dropout: float) -> None:
        super().__init__(num_classes, width, dropout=dropout)
        self.num_classes, self.num_features = num_classes, self.last_channel
        channels = [self.features[level].out_channels for level in LEVELS]
        self.feature_info = levels([f"features.{level}" for level in LEVELS], channels, [2, 4, 8, 16, 32])

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)

    def classify(self, x: Tensor) -> Tensor:
        return self.classifier(x)


def build_mobilenetv2(
    width: float = 1.0, num_classes: int = 1000, small_stem: bool = False, dropout: float | None = None
) -> MobileNetV2:
    """Builds MobileNetV2 for pictures (B, 3, H, W); its last convolution keeps 1280 channels below width 1.

    Args:
        width: factor on the channels, multiples of 8.
        num_classes: number of classes.
        small_stem: stride 1 in the first convolution, for pictures of up to 64 pixels.
        dropout: rate before the classifier; None for torchvision's 0.2.
    """
    network = MobileNetV2(width, num_classes, 0.2 if dropout is None else dropout)
    if small_stem:
        network.features[0][0].stride = (1, 1)
        halve_strides(network)
    network.replaceable_layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    ]
    return network
