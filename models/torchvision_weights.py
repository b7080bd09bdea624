"""torchvision's ShuffleNetV2 0.5x weights for our network, which has the authors' order of the channels.

torchvision shuffles at the end of a block and lets the first half of the channels pass; the authors shuffle
at the start of the next block, where the even channels pass. At width 0.5 that is the same network with its
channels in another order, so the weights only have to be put in that order.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .shufflenetv2 import REPEATS, ShuffleNetV2

Rearrange = Callable[[list[int]], list[int]]
Split = Callable[[list[int]], tuple[list[int], list[int]]]


def load_torchvision(network: ShuffleNetV2, state: dict[str, Tensor]) -> None:
    """Loads a state dict of torchvision's ``shufflenet_v2_x0_5`` into a plain network of width 0.5, in place.

    torchvision's classifier has a bias, so ``network.fc`` becomes a layer with one: outputs are then equal.

    Raises:
        RuntimeError: the state dict is not one of that network, or the number of classes differs.
    """
    state = dict(state)
    order = torch.arange(state["conv1.0.weight"].shape[0])
    for stage, repeats in zip((2, 3, 4), REPEATS, strict=True):
        order = _reorder_stage(state, f"stage{stage}", repeats, order)
    state["conv5.0.weight"] = state["conv5.0.weight"][:, order]
    weight = network.fc.weight
    network.fc = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    network.load_state_dict(state)


def _reorder_stage(state: dict[str, Tensor], stage: str, repeats: int, order: Tensor) -> Tensor:
    """Reorders a stage, given the order of its inputs, and returns the order of its outputs."""
    half = state[f"{stage}.0.branch2.5.weight"].shape[0]
    match, columns = _match_channels(half, repeats)
    projection = f"{stage}.0.branch1"
    _select(state, f"{projection}.0", f"{projection}.1", order)
    _select(state, f"{projection}.2", f"{projection}.3", match[:half])
    for name in (f"{projection}.2.weight", f"{stage}.0.branch2.0.weight"):
        state[name] = state[name][:, order]
    for block in range(repeats):
        main = f"{stage}.{block}.branch2"
        if block > 0:
            state[f"{main}.0.weight"] = state[f"{main}.0.weight"][:, columns[block - 1]]
        start = (2 * block + 1) * half
        _select(state, f"{main}.5", f"{main}.6", match[start : start + half] % half)
    return columns[-1]


def _select(state: dict[str, Tensor], conv: str, norm: str, order: Tensor) -> None:
    """Reorders the output channels of a convolution and of its batch norm."""
    for name in (
        f"{conv}.weight",
        *(f"{norm}.{x}" for x in ("weight", "bias", "running_mean", "running_var")),
    ):
        state[name] = state[name][order]


def _match_channels(half: int, repeats: int) -> tuple[Tensor, list[Tensor]]:
    """Pairs the channels of a stage that are made by the same branch and used by the same block.

    A channel's label is ``2 * half * block + position`` at the block that makes it.

    Returns:
        For each of our labels torchvision's, and for each block after the first (and the stage's end)
        torchvision's position for each of our used channels.
    """
    ours = _trace(half, repeats, lambda x: x, lambda x: (x[::2], x[1::2]))
    theirs = _trace(half, repeats, _shuffle, lambda x: (x[:half], x[half:]))
    match = torch.zeros(2 * half * repeats, dtype=torch.long)
    columns = []
    for used, reference in zip(ours, theirs, strict=True):
        by_branch = [sorted(labels, key=lambda label: label // half) for labels in (used, reference)]
        match[by_branch[0]] = torch.tensor(by_branch[1])
        columns.append(torch.tensor([reference.index(int(match[label])) for label in used]))
    return match, columns


def _trace(half: int, repeats: int, finish: Rearrange, split: Split) -> list[list[int]]:
    """The labels that blocks 1, 2, ... use, in order, and those that leave the stage."""
    channels = finish(list(range(2 * half)))
    used = []
    for block in range(1, repeats):
        passed, taken = split(channels)
        used.append(taken)
        start = (2 * block + 1) * half
        channels = finish([*passed, *range(start, start + half)])
    return [*used, channels]


def _shuffle(labels: list[int]) -> list[int]:
    half = len(labels) // 2
    return [label for pair in zip(labels[:half], labels[half:], strict=True) for label in pair]
