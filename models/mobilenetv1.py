"""MobileNetV1 from timm, with its thirteen pointwise convolutions named as replaceable (D3)."""

from timm.models.efficientnet import EfficientNet, _gen_mobilenet_v1

from .classifier import halve_strides


def build_mobilenetv1(
    width: float = 1.0, num_classes: int = 1000, small_stem: bool = False, dropout: float | None = None
) -> EfficientNet:
    """Builds MobileNetV1 for pictures (B, 3, H, W) with ReLU6 and timm's initialisation.

    timm's registry has widths 1 and 1.25 only, hence its builder here.

    Args:
        width: factor on the channels, multiples of 8.
        num_classes: number of classes.
        small_stem: stride 1 in the first convolution, for pictures of up to 64 pixels.
        dropout: rate before the classifier; None for none.
    """
    network = _gen_mobilenet_v1("mobilenetv1_100", width, num_classes=num_classes, drop_rate=dropout or 0.0)
    if small_stem:
        network.conv_stem.stride = (1, 1)
        halve_strides(network)
    network.replaceable_layers = [name for name, _ in network.named_modules() if name.endswith(".conv_pw")]
    return network
