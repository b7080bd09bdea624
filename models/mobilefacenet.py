"""MobileFaceNet for faces of 112x96 pixels: the network of the paper's Table 2."""

from torch import Tensor, nn

from .classifier import Classifier, check_pool, levels

# Expansion, channels, number of blocks and stride of the first block of each group of bottlenecks.
GROUPS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
    )
    return [conv, nn.BatchNorm2d(out_channels)]


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution and linear projection, with a shortcut where the shapes allow it."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        middle = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.main = nn.Sequential(
            *_conv(in_channels, middle, 1),
            nn.PReLU(middle),
            *_conv(middle, middle, 3, stride, groups=middle),
            nn.PReLU(middle),
            *_conv(middle, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main(x) if self.shortcut else self.main(x)


class MobileFaceNet(Classifier):
    """MobileFaceNet: pictures (B, 3, 112, 96) to embeddings (B, 128), not normalised.

    To timm the embedding is its classifier, ``num_classes`` counts its numbers, and the filters of the whole map are
    its pooling.

    ``replaceable_layers`` names the thirty 1x1 convolutions of the bottlenecks (D3).
    """

    classifier_name = "embedding.2"
    input_size = (112, 96)  # rows, columns

    def __init__(self, embedding: int = 128) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(3, 64, 3, stride=2), nn.PReLU(64), *_conv(64, 64, 3, groups=64), nn.PReLU(64))
        blocks = []
        channels = 64
        for expansion, width, repeats, stride in GROUPS:
            for i in range(repeats):
                blocks.append(Bottleneck(channels, width, expansion, stride if i == 0 else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(*_conv(channels, 512, 1), nn.PReLU(512))
        pool = nn.Conv2d(512, 512, (7, 6), groups=512, bias=False)
        self.embedding_size = self.num_classes = embedding
        self.num_features = 512
        self.feature_info = levels(["stem", *(f"blocks.{i}" for i in (4, 11, 14))], [64, 64, 128, 128], [2, 4, 8, 16])
        self.embedding = nn.Sequential(pool, nn.BatchNorm2d(512), *_conv(512, embedding, 1))
        self.replaceable_layers = [f"blocks.{i}.main.{j}" for i in range(len(blocks)) for j in (0, 6)]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        pool, norm, *embed = self.embedding
        if self.global_pool:
            x = norm(pool(x))
        if not pre_logits:
            for layer in embed:
                x = layer(x)
        return x.flatten(1) if self.global_pool else x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the layer of the embedding and its norm; by nothing with 0 numbers."""
        self.global_pool = check_pool(num_classes, self.global_pool if global_pool is None else global_pool)
        self.num_classes = self.embedding_size = num_classes
        layers = _conv(self.num_features, num_classes, 1) if num_classes else [nn.Identity(), nn.Identity()]
        device = self.stem[0].weight.device
        self.embedding[2], self.embedding[3] = (layer.to(device) for layer in layers)  # type: ignore[arg-type]


def build_mobilefacenet(
    width: float = 1.0, num_classes: int | None = None, small_stem: bool = False, dropout: float | None = None
) -> MobileFaceNet:
    """Builds MobileFaceNet, which has one size: the number of classes belongs to the margin head, not to it.

    Raises:
        ValueError: a width or a dropout rate is asked for.
    """
    if width != 1.0 or dropout is not None:
        raise ValueError(f"mobilefacenet has model.width=1.0 and no dropout, found {width} and {dropout}")
    return MobileFaceNet()
