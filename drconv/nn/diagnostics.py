"""What the guides of a network do: statistics for the training log, and losses that keep them from collapsing (D11)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from drconv.nn.conv import DRConv2d
from drconv.nn.guide import Guide

Statistics = dict[str, dict[str, Any]]


def region_usage(logits: Tensor) -> Tensor:
    """Share of the positions of each region: (B, M, H, W) to (M,), fp32, zeros for an empty batch."""
    regions = logits.shape[1]
    chosen = logits.detach().max(1).indices.flatten()
    # Not bincount, which makes the host wait on CUDA.
    counts = (chosen == torch.arange(regions, device=logits.device)[:, None]).sum(1)
    return counts.float() / max(chosen.numel(), 1)


def usage_entropy(usage: Tensor) -> Tensor:
    """Entropy of region shares over its maximum: 1 for equal use, 0 for a single region."""
    if usage.numel() == 1:
        return torch.ones_like(usage[0])
    return torch.special.entr(usage).sum() / torch.tensor(float(usage.numel())).log()


def balance_loss(logits: Tensor) -> Tensor:
    """``M sum_r f_r p_r`` with f the shares of the arg max and p the mean probabilities; 1 when balanced, at most M.

    The load-balancing loss of top-1 routing in mixtures of experts (Fedus et al., Switch Transformers, Eq. 4). Only p
    has a gradient: it pushes down the regions that take more than their share.
    """
    probabilities = logits.softmax(1).mean((0, 2, 3))
    return logits.shape[1] * (region_usage(logits).to(probabilities.dtype) * probabilities).sum()


def z_loss(logits: Tensor) -> Tensor:
    """Mean square of the logits' log-partition, which keeps them small (Zoph et al., ST-MoE, Eq. 5)."""
    return logits.logsumexp(1).square().mean()


def keep_logits(network: nn.Module, keep: bool = True) -> None:
    """Let every guide keep the logits of its last training-mode forward pass for ``auxiliary_loss``."""
    for guide in _guides(network).values():
        guide.keep_logits = keep
        guide.logits = None


def auxiliary_loss(network: nn.Module, balance: float, z: float) -> Tensor:
    """``balance * balance_loss + z * z_loss``, each the mean over the guides of the last forward pass.

    The gradient of this loss reaches the guides whole, whatever their ``gradient`` factor; what flows on into the
    features is multiplied by ``feature_gradient``. The kept logits are released.

    Args:
        network: has run forward in training mode since ``keep_logits(network)``.
        balance: weight of the balance loss.
        z: weight of the z-loss.

    Raises:
        RuntimeError: no guide has kept its logits.
    """
    losses = []
    for guide in _guides(network).values():
        if guide.logits is not None:
            losses.append(balance * balance_loss(guide.logits) + z * z_loss(guide.logits))
            guide.logits = None
    if not losses:
        raise RuntimeError(
            "no guide has kept its logits; call keep_logits(network) once and run the network forward in training mode"
        )
    return torch.stack(losses).mean()


@contextmanager
def region_statistics(network: nn.Module) -> Iterator[Statistics]:
    """Watch the guides: ``with region_statistics(network) as statistics: network(x)``.

    When the context ends, ``statistics`` maps each guide's name to the numbers of the last forward pass inside:

    - ``usage``: list of M shares of the positions,
    - ``entropy``: of the usage over its maximum, 1 for equal use and 0 for a single region,
    - ``logit_std`` and ``logit_range``: standard deviation over the regions, averaged over the positions, and the mean
      distance of the largest to the smallest logit,
    - ``scale_min`` and ``scale_max``: over the generators of the layers this guide serves, where they have one.

    Numbers are read from the device once, at the end.
    """
    statistics: Statistics = {}
    logits: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    handles = []
    for name, guide in _guides(network).items():
        handles.append(guide.register_forward_hook(_keep(name, logits)))
    for name, module in network.named_modules():
        if isinstance(module, DRConv2d) and module.generator is not None and module.experts is None:
            handles.append(module.generator.register_forward_hook(_keep(name, scales)))
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
    ranges = _scale_ranges(logits, scales)
    for name, values in logits.items():
        statistics[name] = _describe(values) | ranges[name]


def _guides(network: nn.Module) -> dict[str, Guide]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Guide)}


def _keep(name: str, into: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        into[name] = output.detach()

    return hook


def _scale_ranges(guides: dict[str, Tensor], scales: dict[str, Tensor]) -> Statistics:
    """Smallest and largest scale of the layers below each guide's owner."""
    ranges: Statistics = {}
    for guide in guides:
        owner = guide.removesuffix("guide")  # "" or "stage.block.", the layer or sequence that owns the guide
        served = [scale for name, scale in scales.items() if scale.numel() and _nearest(f"{name}.", guides) == owner]
        ranges[guide] = {
            "scale_min": min((float(scale.min()) for scale in served), default=None),
            "scale_max": max((float(scale.max()) for scale in served), default=None),
        }
    return ranges


def _nearest(layer: str, guides: dict[str, Tensor]) -> str:
    """The longest owner of a guide that ``layer`` lies below."""
    owners = [guide.removesuffix("guide") for guide in guides]
    return max((owner for owner in owners if layer.startswith(owner)), key=len, default="")


def _describe(logits: Tensor) -> dict[str, Any]:
    usage = region_usage(logits)
    numbers = torch.stack(
        [
            usage_entropy(usage),
            logits.std(1, correction=0).mean().float(),
            (logits.amax(1) - logits.amin(1)).mean().float(),
        ]
    )
    entropy, std, span = numbers.tolist()
    return {"usage": usage.tolist(), "entropy": entropy, "logit_std": std, "logit_range": span}
