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


def region_coherence(logits: Tensor) -> Tensor:
    """How much regions hang together: 1 for one piece, 0 where neighbours agree as in a shuffle of the positions.

    The share of horizontal and vertical neighbours with the same region, e, against that of all pairs of positions of
    a picture, c: ``(e - c) / (1 - c)``, both averaged over the batch; 0 where there is nothing to tell (a single region
    or position). (B, M, H, W) to a scalar in fp32.
    """
    chosen = logits.detach().max(1).indices
    positions = chosen[0].numel() if len(chosen) else 0
    if positions < 2:
        return torch.zeros((), device=logits.device)
    pairs = [chosen[:, 1:] == chosen[:, :-1], chosen[:, :, 1:] == chosen[:, :, :-1]]
    equal = torch.cat([pair.flatten() for pair in pairs]).float().mean()
    regions = torch.arange(logits.shape[1], device=logits.device)
    counts = (chosen.flatten(1)[:, None] == regions[:, None]).sum(2).float()
    chance = ((counts * (counts - 1)).sum(1) / (positions * (positions - 1))).mean()
    return torch.where(chance < 1, (equal - chance) / (1 - chance).clamp(min=1e-12), 0.0)


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


def set_progress(network: nn.Module, progress: float) -> None:
    """Tell the layers how much of the training is done, 0 to 1, for ``filter_sharing_end``."""
    for module in network.modules():
        if isinstance(module, DRConv2d):
            module.progress = progress


@contextmanager
def region_statistics(network: nn.Module) -> Iterator[Statistics]:
    """Watch the guides: ``with region_statistics(network) as statistics: network(x)``.

    When the context ends, ``statistics`` maps each guide's name to the numbers of the last forward pass inside:

    - ``usage``: list of M shares of the positions,
    - ``entropy``: of the usage over its maximum, 1 for equal use and 0 for a single region,
    - ``logit_std`` and ``logit_range``: standard deviation over the regions, averaged over the positions, and the mean
      distance of the largest to the smallest logit,
    - ``coherence``: of the regions, 1 for pieces and 0 for salt and pepper, see ``region_coherence``,
    - ``scale_min`` and ``scale_max``: over the generators of the layers this guide serves, where they have one,
    - ``filter_spread``: how far the filters of the regions of the first image lie from their mean, over their size
      (root mean squares, averaged over the layers this guide serves): 0 where DRConv is a standard convolution,
      sqrt(1 - 1/M) where the filters have nothing in common.

    Numbers are read from the device at the end.
    """
    statistics: Statistics = {}
    logits: dict[str, Tensor] = {}
    gates: dict[str, Tensor] = {}
    layers = {name: module for name, module in network.named_modules() if isinstance(module, DRConv2d)}
    handles = []
    for name, guide in _guides(network).items():
        handles.append(guide.register_forward_hook(_keep(name, logits)))
    for name, layer in layers.items():
        if layer.generator is not None:
            handles.append(layer.generator.register_forward_hook(_keep(name, gates)))
    try:
        yield statistics
    finally:
        for handle in handles:
            handle.remove()
    owners = {path: _nearest(f"{path}.", logits) for path in layers}
    for name, values in logits.items():
        owner = name.removesuffix("guide")  # "" or "stage.block.", the layer or sequence that owns the guide
        served = {path: layer for path, layer in layers.items() if owners[path] == owner}
        statistics[name] = _describe(values) | _scale_range(served, gates) | _filter_spread(served, gates)


@contextmanager
def gradient_norms(network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[dict[str, float]]:
    """Watch the gradients of one step: ``with gradient_norms(network, optimizer) as norms: ...``.

    When the context ends, ``norms`` holds the 2-norms of the last gradients that the optimiser took (clipped and
    without the loss scale), over all layers: of the guides (``guide``), of the generators' first layers
    (``generator``), of the filters they are made from (``filters``) and of all other parameters (``rest``). It stays
    empty for a network without DRConv, and where the optimiser took no step.
    """
    norms: dict[str, float] = {}
    taken: dict[str, Tensor] = {}
    parts = _parts(network)

    def keep(*_: Any) -> None:
        for name, parameters in parts.items():
            gradients = [parameter.grad.detach() for parameter in parameters if parameter.grad is not None]
            taken[name] = torch.nn.utils.get_total_norm(gradients)

    handle = optimizer.register_step_pre_hook(keep)
    try:
        yield norms
    finally:
        handle.remove()
    norms.update({name: float(norm) for name, norm in taken.items()})


def _parts(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of a DRConv network by what they do; none for another network."""
    layers = [module for module in network.modules() if isinstance(module, DRConv2d)]
    if not layers:
        return {}
    guides = [parameter for guide in _guides(network).values() for parameter in guide.parameters()]
    gates = [layer.generator for layer in layers if layer.generator is not None]
    generators = [parameter for gate in gates for parameter in gate.parameters()]
    filters = [value for layer in layers for value in (layer.weight, layer.filter_bias) if value is not None]
    named = {id(parameter) for parameter in [*guides, *generators, *filters]}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in named]
    return {"guide": guides, "generator": generators, "filters": filters, "rest": rest}


def _guides(network: nn.Module) -> dict[str, Guide]:
    return {name: module for name, module in network.named_modules() if isinstance(module, Guide)}


def _keep(name: str, into: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        into[name] = output.detach()

    return hook


def _scale_range(layers: dict[str, DRConv2d], gates: dict[str, Tensor]) -> dict[str, float | None]:
    """Smallest and largest scale of the grouped generators; the sigmoids of "experts" are no scales of a filter."""
    gated = [name for name, layer in layers.items() if layer.experts is None and name in gates]
    scales = [gates[name] for name in gated if gates[name].numel()]
    return {
        "scale_min": min((float(scale.min()) for scale in scales), default=None),
        "scale_max": max((float(scale.max()) for scale in scales), default=None),
    }


@torch.no_grad()
def _filter_spread(layers: dict[str, DRConv2d], gates: dict[str, Tensor]) -> dict[str, float | None]:
    """Distance of the regions' filters from their mean over their size, mean of the layers that have run."""
    spreads = []
    for name, layer in layers.items():
        filters: Tensor
        if layer.generator is None:
            filters = layer.weight
        elif name in gates and len(gates[name]):
            filters = layer.make_filters(gates[name][:1])[0]
        else:
            continue
        spreads.append((filters - filters.mean(0)).norm() / filters.norm())
    return {"filter_spread": float(torch.stack(spreads).mean()) if spreads else None}


def _nearest(layer: str, guides: dict[str, Tensor]) -> str:
    """The longest owner of a guide that ``layer`` lies below."""
    owners = [guide.removesuffix("guide") for guide in guides]
    return max((owner for owner in owners if layer.startswith(owner)), key=len, default="")


def _describe(logits: Tensor) -> dict[str, Any]:
    usage = region_usage(logits)
    numbers = torch.stack(
        [
            usage_entropy(usage),
            region_coherence(logits),
            logits.std(1, correction=0).mean().float(),
            (logits.amax(1) - logits.amin(1)).mean().float(),
        ]
    )
    names = ("entropy", "coherence", "logit_std", "logit_range")
    return {"usage": usage.tolist(), **dict(zip(names, numbers.tolist(), strict=True))}
