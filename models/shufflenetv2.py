"""ShuffleNetV2 as its authors published it, the backbone of the paper's main comparison.

It is not torchvision's network: in the block of stride 2 the projection keeps the block's input channels and
the main branch makes up the rest (torchvision gives each branch half), the channel shuffle stands at the
start of a block, and the classifier has no bias. Both agree at width 0.5 up to the order of the channels
(``models.torchvision_weights``).
"""

import torch
from torch import Tensor, nn

from .classifier import Classifier, levels

# Channels of the stem, of stages 2, 3, 4 and of the last convolution. The authors published 0.5 to 2; 0.25 is
# half of 0.5 with the last convolution kept, for small experiments in which a network underfits its data.
CHANNELS: dict[float, tuple[int, ...]] = {
    0.25: (12, 24, 48, 96, 1024),
    0.5: (24, 48, 96, 192, 1024),
    1.0: (24, 116, 232, 464, 1024),
    1.5: (24, 176, 352, 704, 1024),
    2.0: (24, 244, 488, 976, 2048),
}
REPEATS = (4, 8, 4)


def channels_of(width: float) -> tuple[int, ...]:
    """The channels of a width; between two widths of the table they are interpolated, to even numbers.

    Raises:
        ValueError: the width is outside the table.
    """
    lower = max((w for w in CHANNELS if w <= width), default=None)
    upper = min((w for w in CHANNELS if w >= width), default=None)
    if lower is None or upper is None:
        raise ValueError(f"model.width={width}: shufflenetv2 takes {min(CHANNELS)} to {max(CHANNELS)}")
    share = 0.0 if lower == upper else (width - lower) / (upper - lower)
    pairs = zip(CHANNELS[lower], CHANNELS[upper], strict=True)
    return tuple(2 * round((a + share * (b - a)) / 2) for a, b in pairs)


def split_shuffled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Shuffles the channels in two groups and splits them: the even and the odd channels."""
    return x[:, 0::2], x[:, 1::2]  # views that keep the memory format, at batch size 1 too


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _depthwise(channels: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
    return [conv, nn.BatchNorm2d(channels)]


class ShuffleBlock(nn.Module):
    """Half of the channels pass, the others go through ``branch2``; with stride 2 all go through both.

    ``branch2`` is a ``Sequential``, so that one guide can be computed on its input and shared by its DRConvs.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        inputs = in_channels if stride == 2 else in_channels // 2
        middle = out_channels // 2
        projection = [*_depthwise(inputs, stride), *_pointwise(inputs, inputs)] if stride == 2 else []
        self.branch1 = nn.Sequential(*projection)
        self.branch2 = nn.Sequential(
            *_pointwise(inputs, middle),
            *_depthwise(middle, stride),
            *_pointwise(middle, out_channels - inputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, used = (x, x) if self.stride == 2 else split_shuffled(x)
        return torch.cat([self.branch1(passed), self.branch2(used)], dim=1)


class ShuffleNetV2(Classifier):
    """ShuffleNetV2 for pictures (B, 3, H, W), giving logits (B, num_classes).

    ``replaceable_layers`` names the two 1x1 convolutions of every main branch, which the paper replaces (D3).

    Args:
        width: 0.25 to 2; the authors' are 0.5, 1, 1.5 and 2.
        num_classes: number of classes.
        small_stem: stride 1 and no pooling in the stem, for pictures of up to 64 pixels.
        dropout: rate before the classifier; None for the authors' (0.2 at width 2, otherwise none).

    Raises:
        ValueError: the width is out of range.
    """

    def __init__(
        self,
        width: float = 1.0,
        num_classes: int = 1000,
        small_stem: bool = False,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        stem, *stages, last = channels_of(width)
        conv = nn.Conv2d(3, stem, 3, stride=1 if small_stem else 2, padding=1, bias=False)
        self.conv1 = nn.Sequential(conv, nn.BatchNorm2d(stem), nn.ReLU(inplace=True))
        self.maxpool = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        self.stage2 = _stage(stem, stages[0], REPEATS[0])
        self.stage3 = _stage(stages[0], stages[1], REPEATS[1])
        self.stage4 = _stage(stages[1], stages[2], REPEATS[2])
        self.conv5 = nn.Sequential(*_pointwise(stages[2], last))
        self.dropout = nn.Dropout((0.2 if width == 2.0 else 0.0) if dropout is None else dropout)
        self.fc = nn.Linear(last, num_classes, bias=False)
        self.num_classes, self.num_features = num_classes, last
        names = ["conv1", "maxpool", "stage2", "stage3", "stage4"]
        strides = [1, 1, 2, 4, 8] if small_stem else [2, 4, 8, 16, 32]
        self.feature_info = levels(names, [stem, stem, *stages], strides)
        self.replaceable_layers = [
            f"stage{stage}.{block}.branch2.{index}"
            for stage, repeats in zip((2, 3, 4), REPEATS, strict=True)
            for block in range(repeats)
            for index in (0, 5)
        ]
        self._initialise()

    def _initialise(self) -> None:
        """The authors' start: a convolution's standard deviation is one over its input channels per group."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = 0.01 if module is self.conv1[0] else 1.0 / module.weight.shape[1]
                nn.init.normal_(module.weight, std=std)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.bias, 1e-4)
        nn.init.normal_(self.fc.weight, std=0.01)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.conv1(x))
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))


def _stage(in_channels: int, out_channels: int, repeats: int) -> nn.Sequential:
    blocks = [ShuffleBlock(in_channels, out_channels, stride=2)]
    blocks += [ShuffleBlock(out_channels, out_channels, stride=1) for _ in range(repeats - 1)]
    return nn.Sequential(*blocks)
