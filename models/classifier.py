"""What timm's users expect of a network besides its forward pass: features, head, and a classifier that is replaced."""

from typing import Any

from torch import Tensor, nn

POOLS = ("avg", "")  # "": none, the head gives its map as it is

Levels = list[dict[str, Any]]


class Classifier(nn.Module):
    """Pictures (B, C, H, W) to features (B, ``num_features``, H', W'), averaged, to logits (B, ``num_classes``).

    A network sets ``num_classes``, ``num_features`` and ``feature_info`` and has ``forward_features``; its dropout and
    linear layer are ``dropout`` and ``fc``, or what ``classifier_name`` and ``classify`` say.

    Attributes:
        feature_info: the maps of timm's ``features_only=True``: module, channels (num_chs), stride (reduction).
        global_pool: see ``POOLS``.
    """

    classifier_name = "fc"
    num_classes: int
    num_features: int
    feature_info: Levels
    global_pool = "avg"
    dropout: Any
    fc: Any

    @property
    def head_hidden_size(self) -> int:
        """timm's name for the number of channels that the classifier reads."""
        return self.num_features

    def forward_features(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) to the map that is pooled."""
        raise NotImplementedError

    def classify(self, x: Tensor) -> Tensor:
        """Pooled features (B, num_features) to logits."""
        return self.fc(self.dropout(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map of ``forward_features`` to logits, or with ``pre_logits`` to what the classifier reads."""
        x = x.mean((2, 3)) if self.global_pool else x
        return x if pre_logits else self.classify(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.get_submodule(self.classifier_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier by a new linear layer; by nothing with 0 classes.

        Raises:
            ValueError: an unknown pooling, or classes without a pooling.
        """
        self.global_pool = check_pool(num_classes, self.global_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        old = self.get_classifier()
        new = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        parent, _, child = self.classifier_name.rpartition(".")
        setattr(self.get_submodule(parent), child, new.to(next((p.device for p in old.parameters()), None)))


def check_pool(num_classes: int, pool: str) -> str:
    """The pooling.

    Raises:
        ValueError: it is unknown, or classes need one.
    """
    if pool not in POOLS:
        raise ValueError(f"global_pool={pool!r} is unknown; use 'avg', or '' for none")
    if num_classes and not pool:
        raise ValueError(f"num_classes={num_classes} needs global_pool='avg'; with '' give num_classes=0")
    return pool


def levels(names: list[str], channels: list[int], strides: list[int]) -> Levels:
    """``feature_info`` of modules with their channels and strides."""
    rows = zip(names, channels, strides, strict=True)
    return [{"module": name, "num_chs": count, "reduction": stride} for name, count, stride in rows]


def halve_strides(network: Any) -> None:
    """``feature_info`` of a network whose stem lost its stride."""
    for level in network.feature_info:
        level["reduction"] = max(1, level["reduction"] // 2)
