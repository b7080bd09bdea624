"""Filter generators: how the filters of an image are made from it (section 3.2 of the paper, decision D1)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from drconv.nn.kernels.geometry import Pair
from drconv.nn.plain import standard
from drconv.nn.precision import without_autocast


@standard
class PooledGate(nn.Module):
    """Average pooling, a 1x1 convolution, a sigmoid: the generator's first layer. Runs in fp32.

    Args:
        in_channels: C.
        units: sigmoids per tap.
        size: taps (K, K) the input is pooled to; (1, 1) is global average pooling.
        peak: the sigmoid's upper end. At the start, and always for zero weights, a unit gives about ``peak / 2``.
    """

    def __init__(
        self,
        in_channels: int,
        units: int,
        size: Pair,
        peak: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.peak = peak
        self.extents: Tensor | None = None  # shares of the rows and columns to pool, set by pool_inside
        self.weight = nn.Parameter(torch.empty(units, in_channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(units, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights N(0, 0.01) and bias 0, as in the authors' code: every unit starts near ``peak / 2``."""
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, units), or (B, units, K, K) for more than one tap; at least fp32."""
        with without_autocast(x):
            return self._gate(x)

    def _gate(self, x: Tensor) -> Tensor:
        precise = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight, bias = self.weight.to(precise), self.bias.to(precise)
        if self.size == (1, 1) and self.extents is None:
            # Not mean(): its gradient is a map of its own, that of a sum a view.
            pooled = x.sum((2, 3), dtype=precise) / (x.shape[2] * x.shape[3])
            gate = F.linear(pooled, weight, bias).sigmoid()
        else:
            pooled = pool_average(x.to(precise), self.size, self.extents)
            gate = (torch.einsum("bchw,uc->buhw", pooled, weight) + bias[:, None, None]).sigmoid()
            gate = gate.flatten(1) if self.size == (1, 1) else gate
        return gate if self.peak == 1 else gate * self.peak

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, size={self.size}, peak={self.peak:g}"


def pool_average(x: Tensor, size: Pair, extents: Tensor | None = None) -> Tensor:
    """Adaptive average pooling (B, C, H, W) to (B, C, *size) as two matrix products.

    Same windows and values as ``F.adaptive_avg_pool2d``, whose backward is not deterministic on CUDA.

    Args:
        x: (B, C, H, W).
        size: rows and columns of the output.
        extents: (B, 2), the shares of rows and columns from the first on that are pooled; None for all.
    """
    shares = (None, None) if extents is None else extents.to(x.device).unbind(1)
    rows = _pooling_matrix(x.shape[2], size[0], x, shares[0])
    columns = _pooling_matrix(x.shape[3], size[1], x, shares[1])
    return rows @ x @ columns.mT


def _pooling_matrix(length: int, bins: int, like: Tensor, share: Tensor | None) -> Tensor:
    """(bins, length), or (B, 1, bins, length): row i averages the positions floor(i L / n) to ceil((i + 1) L / n).

    L is the length, or the number of positions that begin within the share of it.
    """
    position = torch.arange(length, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    used: int | Tensor = length
    if share is not None:  # the small number takes away what rounding may have added to a whole one
        used = (share * length - 1e-4).ceil().clamp(1, length).long()[:, None, None, None]
    first = index * used // bins
    end = -((index + 1) * used // -bins)
    inside = ((position >= first) & (position < end)).to(like.dtype)
    return inside / inside.sum(-1, keepdim=True)


@contextmanager
def pool_inside(network: nn.Module, sizes: Sequence[Pair], padded: Pair) -> Iterator[None]:
    """A context in which every filter generator of a network pools a picture and not its padding.

    Pictures of a batch are padded on the right and below to one size. Pooled with it, a picture's filters would depend
    on the pictures beside it.

    Args:
        network: holds DRConvs, or none.
        sizes: rows and columns of each picture of the batch.
        padded: rows and columns of the batch.
    """
    gates = [module for module in network.modules() if isinstance(module, PooledGate)]
    is_padded = any(size != padded for size in sizes)
    extents = torch.tensor(sizes, dtype=torch.float64) / torch.tensor(padded) if is_padded else None
    for gate in gates:
        gate.extents = None if extents is None else extents.to(gate.weight.device)
    try:
        yield
    finally:
        for gate in gates:
            gate.extents = None


def grouped_filters(weight: Tensor, gate: Tensor, bias: Tensor | None, regions: int) -> Tensor:
    """Second layer of the paper's generator: a 1x1 convolution with groups = M, for each image.

    Needed only where it does not factor into a scale per region (a bias, or several hidden units per region).

    Args:
        weight: (M U, O, C/G, K, K), U hidden units per region.
        gate: (B, M U) or (B, M U, K, K).
        bias: (M, O, C/G, K, K) or None.
        regions: M.

    Returns:
        Filters (B, M, O, C/G, K, K), ``sum_u gate[b, r u] weight[r u] + bias[r]``.
    """
    taps = gate[:, :, None, None, None, None] if gate.dim() == 2 else gate[:, :, None, None]
    if weight.shape[0] != regions:
        products = taps.unflatten(1, (regions, -1)) * weight.unflatten(0, (regions, -1))
        filters = products.sum(2)
        return filters if bias is None else filters + bias
    return taps * weight if bias is None else torch.addcmul(bias, taps, weight)


def mix_experts(weight: Tensor, mixing: Tensor) -> Tensor:
    """Filters of every image and region as mixtures of shared experts (the authors' released code).

    Args:
        weight: experts (E, O, C/G, K, K).
        mixing: (B, M E).

    Returns:
        Filters (B, M, O, C/G, K, K).
    """
    experts = weight.shape[0]
    mixed = mixing.reshape(-1, experts) @ weight.flatten(1)
    return mixed.view(mixing.shape[0], mixing.shape[1] // experts, *weight.shape[1:])


def remake_in_backward(
    filters: Tensor, make: Callable[[], Tensor], sources: Sequence[Tensor | None]
) -> saved_tensors_hooks:
    """A context in which ``filters`` is not kept for the backward pass but made again there.

    Filters of every image are the largest tensors of a DRConv network (100 MB per image for MobileNetV1 in fp32),
    and cheap to make.

    Args:
        filters: the tensor that operations inside the context would keep.
        make: returns the same values again.
        sources: what it makes them from. Like tensors that are kept, these must not change before the backward pass,
            which then raises as ``nn.Conv2d`` does.
    """
    pointer, shape = filters.data_ptr(), filters.shape
    versions = [(source, source._version) for source in sources if source is not None]

    def pack(tensor: Tensor) -> Tensor | None:
        return None if tensor.data_ptr() == pointer and tensor.shape == shape else tensor

    def unpack(kept: Tensor | None) -> Tensor:
        if kept is not None:
            return kept
        for source, version in versions:
            if source._version != version:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an inplace operation: "
                    f"filters of DRConv2d {tuple(source.shape)} are at version {source._version}; expected version "
                    f"{version} instead. Change them after the backward pass."
                )
        with torch.no_grad():
            return make()

    return saved_tensors_hooks(pack, unpack)
