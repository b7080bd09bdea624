"""MobileNetV2 from torchvision, with all its 1x1 convolutions named as replaceable (D3)."""

from torch import nn
from torchvision.models.mobilenetv2 import MobileNetV2


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
    network = MobileNetV2(num_classes, width, dropout=0.2 if dropout is None else dropout)
    if small_stem:
        network.features[0][0].stride = (1, 1)
    network.replaceable_layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
    ]
    return network
