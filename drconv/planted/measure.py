"""How well a student imitates, and whether it found the regions."""

from typing import Any

import torch
from torch import Tensor, nn

from drconv.nn.diagnostics import region_statistics
from drconv.nn.guide import Guide
from drconv.planted.teacher import PlantedLayer


def explained_variance(output: Tensor, target: Tensor) -> float:
    """1 for a perfect imitation, 0 for the target's mean in each channel; (B, C, H, W) both, or (N, C)."""
    output, target = output.double().transpose(0, 1).flatten(1), target.double().transpose(0, 1).flatten(1)
    unexplained = (target - output).square().sum()
    return float(1 - unexplained / (target - target.mean(1, keepdim=True)).square().sum())


def mutual_information(first: Tensor, second: Tensor) -> float:
    """Normalised mutual information of two labellings: 1 for equal up to names, 0 for independent.

    The mutual information over the mean of the two entropies; integers of one shape. 1 where both have a single label.
    """
    first, second = first.flatten().long(), second.flatten().long()
    columns = int(second.max()) + 1
    counts = torch.bincount(first * columns + second, minlength=(int(first.max()) + 1) * columns).view(-1, columns)
    joint = counts.double() / counts.sum()
    entropies = [torch.special.entr(joint.sum(axis)).sum() for axis in (0, 1)]
    total = entropies[0] + entropies[1]
    if total == 0:
        return 1.0
    return float(2 * (total - torch.special.entr(joint).sum()) / total)


def linear_fit(x: Tensor, target: Tensor, new_x: Tensor) -> Tensor:
    """The best 1x1 convolution with bias from x to target (B, C, H, W), applied to ``new_x``."""

    def rows(maps: Tensor) -> Tensor:
        flat = maps.movedim(1, -1).flatten(0, -2).double()
        return torch.cat([flat, torch.ones(len(flat), 1, dtype=flat.dtype)], 1)

    answers = target.movedim(1, -1).flatten(0, -2).double()
    solution = torch.linalg.lstsq(rows(x), answers).solution
    batch, _, height, width = new_x.shape
    return (rows(new_x) @ solution).view(batch, height, width, -1).movedim(-1, 1)


@torch.no_grad()
def compare(student: nn.Module, teacher: nn.Module, x: Tensor) -> dict[str, Any]:
    """What the records hold of a student, from maps that it was not trained on.

    Agreement is the mean over the layers of the network; spread and the largest share are means over the guides. A
    student without guides has none of the three.
    """
    student.eval()
    masks: list[Tensor] = []
    guides = [module for module in student.modules() if isinstance(module, Guide)]
    handles = [guide.register_forward_hook(lambda *call: masks.append(call[2].max(1).indices)) for guide in guides]
    with region_statistics(student) as statistics:
        output = student(x)
    for handle in handles:
        handle.remove()
    found: dict[str, Any] = {"explained": explained_variance(output, teacher(x))}
    if guides:
        planted = planted_masks(teacher, x)
        agreements = [mutual_information(*pair) for pair in zip(planted, masks, strict=True)]
        entries = list(statistics.values())
        found |= {
            "agreement": sum(agreements) / len(agreements),
            "agreements": agreements,
            "filter_spread": sum(entry["filter_spread"] for entry in entries) / len(entries),
            "largest_share": sum(max(entry["usage"]) for entry in entries) / len(entries),
        }
    return found


def planted_masks(teacher: nn.Module, x: Tensor) -> list[Tensor]:
    """The regions (B, H, W) of each planted layer."""
    masks = []
    for module in [teacher] if isinstance(teacher, PlantedLayer) else teacher.children():
        if isinstance(module, PlantedLayer):
            masks.append(module.mask(x))
        x = module(x)
    return masks
