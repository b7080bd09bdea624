"""What the guides of a network choose: the region of every position."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from drconv.errors import ConfigError
from drconv.nn.guide import Guide


@dataclass(frozen=True)
class Mask:
    """The regions of one guide.

    Attributes:
        name: of the guide in the network.
        regions: M.
        chosen: of each picture int64 (H, W), the region of each position at the guide's own resolution.
    """

    name: str
    regions: int
    chosen: list[Tensor]

    def usage(self) -> list[float]:
        """Share of the positions of each region over all pictures."""
        positions = torch.cat([chosen.flatten() for chosen in self.chosen])
        return (torch.bincount(positions, minlength=self.regions) / positions.numel()).tolist()


@torch.inference_mode()
def compute_masks(network: nn.Module, images: Tensor) -> list[Mask]:
    """Arg max of every guide for a batch (B, 3, H, W), in the order of the guides' calls; the mode is left as it was.

    Raises:
        ConfigError: the network has no guide.
    """
    was_training = network.training
    with _logits_of_guides(network) as logits:
        network.eval()(images)
    network.train(was_training)
    if not logits:
        raise ConfigError("this network has no guide; masks need a run with model.conv=drconv")
    return [Mask(name, values.shape[1], list(values.argmax(1).cpu())) for name, values in logits.items()]


def join_masks(parts: Sequence[list[Mask]]) -> list[Mask]:
    """The masks of pictures that went through the network one by one."""
    return [
        Mask(group[0].name, group[0].regions, [chosen for mask in group for chosen in mask.chosen])
        for group in zip(*parts, strict=True)
    ]


@contextmanager
def _logits_of_guides(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    logits: dict[str, Tensor] = {}
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, Guide):
            handles.append(module.register_forward_hook(lambda _, x, y, name=name: logits.__setitem__(name, y)))
    try:
        yield logits
    finally:
        for handle in handles:
            handle.remove()


def choose_masks(masks: list[Mask], patterns: list[str]) -> list[Mask]:
    """Those whose name fits a pattern; without patterns the middle guide at each resolution.

    Raises:
        ConfigError: a pattern fits none.
    """
    if not patterns:
        by_resolution: dict[torch.Size, list[Mask]] = {}
        for mask in masks:
            by_resolution.setdefault(mask.chosen[0].shape, []).append(mask)
        return [group[len(group) // 2] for group in by_resolution.values()]
    for pattern in patterns:
        if not any(fnmatchcase(mask.name, pattern) for mask in masks):
            raise ConfigError(f"no guide fits {pattern}; the guides are {', '.join(mask.name for mask in masks)}")
    return [mask for mask in masks if any(fnmatchcase(mask.name, pattern) for pattern in patterns)]
