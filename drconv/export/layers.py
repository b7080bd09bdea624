"""DRConv as an exporter should see it: a mask, then one operator that takes it.

A layer becomes its mask, its scale and one node ``drconv::RegionConv``. ``expand.py`` writes that node in standard ONNX
operators; onnxruntime runs it as it is where our library of operators is loaded. Letters as in ``drconv.nn.kernels``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drconv.nn.conv import DRConv2d
from drconv.nn.functional import output_size
from drconv.nn.generators import PooledGate
from drconv.nn.guide import Guide, GuidedSequential
from drconv.nn.kernels.geometry import Geometry, Pair

MOST_GROUPS = 4  # up to here a grouped filter is cheaper as a dense one with zeros than as products of its own


class ExportedGuide(nn.Module):
    """Guide and arg max: (B, C, H, W) to the region of each position, int64 (B, H', W'). Its batch norm is folded.

    Attributes:
        kept_as: the name under which ``kept_masks`` collects its masks; None for not at all.
    """

    def __init__(self, guide: Guide) -> None:
        super().__init__()
        self.kept_as: str | None = None
        weight, bias = guide.weight.detach(), None
        if guide.norm is not None:
            assert isinstance(guide.norm, nn.BatchNorm2d)
            mean, variance = guide.norm.running_mean, guide.norm.running_var
            assert mean is not None
            assert variance is not None
            factor = (variance + guide.norm.eps).rsqrt()
            weight, bias = weight * factor.to(weight.dtype)[:, None, None, None], (-mean * factor).to(weight.dtype)
        self.window = (guide.stride, guide.padding, guide.dilation)
        self.weight = nn.Buffer(weight)
        self.bias = None if bias is None else nn.Buffer(bias)

    def forward(self, x: Tensor) -> Tensor:
        mask = F.conv2d(x, self.weight, self.bias, *self.window).argmax(1)
        if self.kept_as is not None:
            _KEPT[self.kept_as] = mask
        return mask


_KEPT: dict[str, Tensor] = {}  # not an attribute of a module: exporters refuse modules that change


@contextmanager
def kept_masks() -> Iterator[dict[str, Tensor]]:
    """The masks that guides with a name make inside the context."""
    _KEPT.clear()
    try:
        yield _KEPT
    finally:
        _KEPT.clear()


class ExportedDRConv(nn.Module):
    """One DRConv2d; call it with the mask of a shared guide, or without where it has its own."""

    def __init__(self, conv: DRConv2d) -> None:
        super().__init__()
        self.geometry = Geometry(conv.stride, conv.padding, conv.dilation, conv.groups)
        self.kernel_size, self.regions, self.limit = conv.kernel_size, conv.regions, conv.relu_limit
        self.out_channels = conv.out_channels
        self.guide = None if conv.guide is None else ExportedGuide(conv.guide)
        self.gate = None if conv.generator is None else ExportedGate(conv.generator)
        self.is_mixture = conv.experts is not None
        self.matrices = nn.Buffer(_matrices(conv))
        self.has_filter_bias = conv.filter_bias is not None
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
        self.bias = nn.Buffer(bias)

    @property
    def takes_guide(self) -> bool:
        return self.guide is None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            assert self.guide is not None  # substitute() and the fusion see to it
            mask = self.guide(x)
        size = self.output_size(x)
        if mask.shape[1:] != size:
            mask = resize_mask(mask, size)
        scale = None if self.gate is None else self.gate(x)
        rows = self._taps(x, size)
        if scale is None or (scale.shape[1] == self.regions and scale.dim() == 2 and self._is_factored):
            return self._multiply(rows, mask, scale)
        rows = self._weigh(rows, self._factors_at(scale, mask))
        return self._multiply(rows, mask, None)

    @property
    def _is_factored(self) -> bool:
        return not self.is_mixture and not self.has_filter_bias

    def output_size(self, x: Tensor) -> Pair:
        shape = torch.empty(1, 1, 1, 1, *self.kernel_size, device="meta")
        return output_size(x, shape, *self.geometry[:3])

    def _taps(self, x: Tensor, size: Pair) -> Tensor:
        """(B, C, H, W) to (B, T C, Ho, Wo), the T = K K pixels under the window."""
        (rows, columns), (top, left), (down, right), _ = self.geometry
        if (top, left) != (0, 0):
            x = F.pad(x, (left, left, top, top))
        if self.kernel_size == (1, 1):
            return x if (rows, columns) == (1, 1) else x[:, :, ::rows, ::columns]
        height, width = (size[0] - 1) * rows + 1, (size[1] - 1) * columns + 1
        taps = [
            x[:, :, i * down : i * down + height : rows, j * right : j * right + width : columns]
            for i in range(self.kernel_size[0])
            for j in range(self.kernel_size[1])
        ]
        return torch.cat(taps, 1)

    def _factors_at(self, scale: Tensor, mask: Tensor) -> Tensor:
        """The generator's units of each position's region: (B, M U, taps or 1) to (B, U', taps or 1, Ho, Wo)."""
        batch = scale.shape[0]
        units = scale.reshape(batch, self.regions, -1)  # (B, M, U taps)
        place = mask.reshape(batch, -1, 1).expand(-1, -1, units.shape[2])
        chosen = units.gather(1, place).transpose(1, 2).unflatten(2, mask.shape[1:])
        taps = self.kernel_size[0] * self.kernel_size[1] if scale.dim() == 4 else 1
        chosen = chosen.unflatten(1, (-1, taps))
        if self.has_filter_bias:
            chosen = torch.cat([chosen, torch.ones_like(chosen[:, :1])], 1)
        return chosen

    def _weigh(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Every unit's copy of the pixels: (B, T C, Ho, Wo) to (B, U' T C, Ho, Wo)."""
        taps = self.kernel_size[0] * self.kernel_size[1]
        split = rows.unflatten(1, (taps, -1)).unsqueeze(1)  # (B, 1, T, C, Ho, Wo)
        return (split * factors.unsqueeze(3)).flatten(1, 3)

    def _multiply(self, x: Tensor, mask: Tensor, scale: Tensor | None) -> Tensor:
        if self.matrices.shape[0] == 1:
            y = F.conv2d(x, self.matrices[0].T[:, :, None, None], self.bias)
            return y if self.limit is None else y.clamp(0.0, self.limit)
        inputs = (x, mask, self.matrices, self.bias, scale)
        shape = (x.shape[0], self.out_channels, *x.shape[2:])
        attributes: dict[str, Any] = {} if self.limit is None else {"limit": self.limit}
        return torch.onnx.ops.symbolic("drconv::RegionConv", inputs, attributes, dtype=x.dtype, shape=shape, version=1)


class ReferenceDRConv(nn.Module):
    """A layer without a cheap form: all m outputs and the choice, by the reference kernel."""

    def __init__(self, conv: DRConv2d) -> None:
        super().__init__()
        self.conv = conv

    @property
    def takes_guide(self) -> bool:
        return self.conv.guide is None

    def output_size(self, x: Tensor) -> Pair:
        conv = self.conv
        return output_size(x, conv.weight[:1].unsqueeze(0), conv.stride, conv.padding, conv.dilation)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return self.conv(x)
        return self.conv(x, F.one_hot(mask, self.conv.regions).permute(0, 3, 1, 2).to(x.dtype))


class ExportedGate(nn.Module):
    """The generator's first layer; one tap is pooled by an operator that onnxruntime has for its own layout."""

    def __init__(self, gate: PooledGate) -> None:
        super().__init__()
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate
        if gate.size != (1, 1):
            return gate(x)
        pooled = F.avg_pool2d(x, (x.shape[2], x.shape[3])).flatten(1)
        return F.linear(pooled, gate.weight, gate.bias).sigmoid() * gate.peak


class ExportedBlock(nn.Module):
    """A GuidedSequential whose layers share the mask, and its resized form after a stride."""

    def __init__(self, block: GuidedSequential) -> None:
        super().__init__()
        self.guide = ExportedGuide(block.guide)  # type: ignore[arg-type]
        self.layers = nn.ModuleList(exported(module) for module in _flatten(block))

    def forward(self, x: Tensor) -> Tensor:
        mask = self.guide(x)
        masks = {tuple(mask.shape[1:]): mask}
        layer: Any
        for layer in self.layers:
            if not getattr(layer, "takes_guide", False):
                x = layer(x)
                continue
            size = layer.output_size(x)
            if size not in masks:
                masks[size] = resize_mask(mask, size)
            x = layer(x, masks[size])
        return x


def resize_mask(mask: Tensor, size: Pair) -> Tensor:
    """Nearest, as ``F.interpolate`` does it with the logits: in fp32, which a constant list keeps out of the file."""
    for axis in (1, 2):
        length, wanted = mask.shape[axis], size[axis - 1]
        if length % wanted == 0:
            mask = mask[:, :: length // wanted] if axis == 1 else mask[:, :, :: length // wanted]
        else:
            step = np.float32(length) / np.float32(wanted)
            index = [min(int(np.float32(place) * step), length - 1) for place in range(wanted)]
            mask = mask.index_select(axis, torch.tensor(index))
    return mask


def exported(module: nn.Module) -> nn.Module:
    """The module with everything of DRConv in it replaced by what is exported; children are replaced in place."""
    if isinstance(module, GuidedSequential):
        return ExportedBlock(module)
    if isinstance(module, DRConv2d):
        return ExportedDRConv(module) if module.groups <= MOST_GROUPS else ReferenceDRConv(module)
    for name, child in list(module.named_children()):
        setattr(module, name, exported(child))
    return module


def _flatten(block: nn.Sequential) -> list[nn.Module]:
    """The layers of a sequence; iterating leaves out the guide, which is a child of its block too."""
    leaves: list[nn.Module] = []
    for module in block:
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            leaves += _flatten(module)
        else:
            leaves.append(module)
    return leaves


def _matrices(conv: DRConv2d) -> Tensor:
    """The filters as products take them, (S, D, O) with S regions, or one for experts, and D = U' T C.

    Rows are by unit, tap and channel; groups are filled up with zeros; the gate's upper end stays with the gate.
    """
    weight = conv.weight.detach()
    regions = 1 if conv.experts is not None else conv.regions
    stacks = weight.unflatten(0, (regions, -1))  # (S, U, O, C/G, K, K)
    if conv.filter_bias is not None:
        stacks = torch.cat([stacks, conv.filter_bias.detach().unsqueeze(1)], 1)
    filters = stacks.flatten(4).permute(0, 1, 4, 3, 2)  # (S, U', T, C/G, O)
    groups = conv.groups
    dense = filters.new_zeros(*filters.shape[:3], conv.in_channels, conv.out_channels)
    height, width = conv.in_channels // groups, conv.out_channels // groups
    for group in range(groups):
        rows, columns = slice(group * height, (group + 1) * height), slice(group * width, (group + 1) * width)
        dense[..., rows, columns] = filters[..., columns]
    return dense.flatten(1, 3)
