"""Multiply-adds and parameters of a network, counted truly and by the paper's convention (decision D9).

*True* counts every product: the convolution, and what makes its filter (generator, routing, mixing of
experts, offsets, sampling) or chooses it (guide). DRConv is counted in its factored form where that exists:
one convolution, not m. Additions alone, activations, normalisation and pooling count nothing; products
outside of these modules are not seen: attention, be it written with ``@`` or ``nn.MultiheadAttention``.

*The paper's convention* reproduces the numbers printed in its tables: a linear layer of C inputs counts 2 C -
1 per output, pooling counts its window, and a DRConv counts one convolution, its guide, and a generator that
makes m filters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import is_lazy

from drconv.nn.condconv import CondConv2d
from drconv.nn.conv import DRConv2d
from drconv.nn.deformable import DeformableKernelConv2d
from drconv.nn.guide import Guide
from drconv.nn.local import LocalConv2d

Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Products:
    """Multiply-adds of one layer for one image."""

    output: int  # the convolution or matrix product itself
    filters: int = 0  # generator, routing, mixing, offsets, sampling
    guide: int = 0
    paper: int | None = None  # all of it by the paper's convention; None where that is the true count

    @property
    def true(self) -> int:
        return self.output + self.filters + self.guide

    @property
    def printed(self) -> int:
        return self.true if self.paper is None else self.paper


@dataclass(frozen=True)
class LayerCost:
    """One row of ``NetworkCost``."""

    name: str
    kind: str
    parameters: int
    products: Products

    @property
    def multiply_adds(self) -> int:
        return self.products.true

    @property
    def paper_multiply_adds(self) -> int:
        return self.products.printed


@dataclass(frozen=True)
class NetworkCost:
    """What ``count_cost`` returns; ``print`` shows it as a table.

    Attributes:
        layers: one entry per call of a layer that is counted, in the order of the calls.
        parameters: of the whole network, shared ones once.
        input_size: channels, rows, columns.
    """

    layers: list[LayerCost]
    parameters: int
    input_size: tuple[int, ...]

    @property
    def multiply_adds(self) -> int:
        """True multiply-adds for one image."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def paper_multiply_adds(self) -> int:
        """Multiply-adds for one image by the paper's convention."""
        return sum(layer.paper_multiply_adds for layer in self.layers)

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        width = max(width, len("layer"))
        columns = f"{'parameters':>11}  {'multiply-adds':>14}  {'as printed':>14}"
        lines = [f"{'layer':{width}}  {'kind':22}  {columns}"]
        for layer in self.layers:
            numbers = f"{layer.parameters:>11,}  {layer.multiply_adds:>14,}  {layer.paper_multiply_adds:>14,}"
            lines.append(f"{layer.name:{width}}  {layer.kind:22}  {numbers}")
        total = f"{self.parameters:>11,}  {self.multiply_adds:>14,}  {self.paper_multiply_adds:>14,}"
        size = "x".join(map(str, self.input_size))
        return "\n".join([*lines, f"{'total':{width}}  {'input ' + size:22}  {total}"])


@dataclass(frozen=True)
class Call:
    """Shapes that one call of a module saw; the batch is 1."""

    name: str
    module: nn.Module
    x: torch.Size
    y: torch.Size


def count_cost(network: nn.Module, input_size: Size) -> NetworkCost:
    """Count parameters and multiply-adds of one image; the network is left as it was.

    Args:
        network: takes (1, C, H, W) on the device and in the type of its first parameter.
        input_size: side in pixels, (H, W) or (C, H, W); three channels unless given.

    Raises:
        ValueError: the network does not take such an input.
    """
    shape = image_shape(input_size)
    calls = trace_calls(network, shape, lambda name, module: find_rule(module) is not None)
    names = {call.name for call in calls}
    outer = [call for call in calls if names.isdisjoint(_ancestors(call.name))]
    layers = [
        LayerCost(call.name, type(call.module).__name__, count_parameters(call.module), count_products(call))
        for call in outer
    ]
    return NetworkCost(layers, count_parameters(network), shape)


def _ancestors(name: str) -> list[str]:
    parts = name.split(".") if name else []
    return [".".join(parts[:depth]) for depth in range(len(parts))]


def count_parameters(module: nn.Module) -> int:
    """Number of parameters, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_products(call: Call) -> Products:
    """Multiply-adds of one call of a module, its children included; zero for modules without a rule."""
    rule = find_rule(call.module)
    return Products(0) if rule is None else rule(call.module, call.x, call.y)


def image_shape(input_size: Size) -> tuple[int, ...]:
    """(C, H, W) from a side in pixels, (H, W) or (C, H, W).

    Raises:
        ValueError: for any other number of entries.
    """
    sizes = (input_size, input_size) if isinstance(input_size, int) else tuple(input_size)
    if len(sizes) not in (2, 3):
        raise ValueError(f"input_size={input_size} must be a side in pixels, (H, W) or (C, H, W)")
    return sizes if len(sizes) == 3 else (3, *sizes)


@torch.no_grad()
def trace_calls(network: nn.Module, shape: tuple[int, ...], wanted: Callable[[str, nn.Module], bool]) -> list[Call]:
    """Run the network once in evaluation mode and note the shapes that the wanted modules see.

    Raises:
        ValueError: the network does not take an input of this shape, or has lazy parameters, which a run would fix.
    """
    if any(is_lazy(parameter) for parameter in network.parameters()):
        raise ValueError(f"{type(network).__name__} has lazy parameters; run it once on an input of its size before")
    calls: list[Call] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
            x = inputs[0] if inputs else next(iter(keywords.values()))
            if isinstance(x, Tensor) and isinstance(output, Tensor):
                calls.append(Call(name, module, x.shape, output.shape))

        return hook

    modules = dict(network.named_modules())
    modes = {module: module.training for module in modules.values()}
    hooks = [
        module.register_forward_hook(note(name), with_kwargs=True)
        for name, module in modules.items()
        if wanted(name, module)
    ]
    like = next(network.parameters(), torch.empty(0))
    try:
        network.eval()
        network(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    except Exception as error:  # whatever a foreign forward pass raises on an input that is not its own
        raise ValueError(
            f"{type(network).__name__} does not take an input of (1, {', '.join(map(str, shape))}): {error}; "
            "change input_size"
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return calls


def _count_drconv(module: DRConv2d, x: torch.Size, y: torch.Size) -> Products:
    positions, filter_size = _positions(y), module.weight[0].numel()
    made = paper_made = guide = 0
    if module.generator is not None:
        gate = module.generator.weight.numel() * module.generator.size[0] * module.generator.size[1]
        made = paper_made = gate + (module.regions if module.experts else 1) * module.weight.numel()
        if module.is_factored:  # the scale multiplies the pixels of a position, no filter is made
            made = gate + positions * module.in_channels * module.weight[0, 0, 0].numel()
    if module.guide is not None:
        guide = count_guide(module.guide, x)
    output = positions * filter_size
    return Products(output, made, guide, output + paper_made + guide)


def count_guide(guide: Guide, x: torch.Size) -> int:
    """Multiply-adds of a guide on an input of shape (B, C, H, W)."""
    logits = torch.nn.functional.conv2d(
        torch.empty(x, device="meta"),
        torch.empty(guide.weight.shape, device="meta"),
        None,
        guide.stride,
        guide.padding,
        guide.dilation,
    )
    return _positions(logits.shape) * guide.weight.numel()


def _positions(y: torch.Size) -> int:
    """Of all maps of a call: where a network folds patches into the batch, one image is many of them."""
    return y[0] * y[2:].numel()


def _count_condconv(module: CondConv2d, x: torch.Size, y: torch.Size) -> Products:
    output = _positions(y) * module.weight[0].numel()
    mixing = module.weight.numel() + (0 if module.bias is None else module.bias.numel())
    routing = Products(0)
    if module.routing is not None:
        routing = _count_linear(module.routing, x, torch.Size([1, module.experts]))
    return Products(output, mixing + routing.true, paper=output + mixing + routing.printed)


def _count_local(module: LocalConv2d, x: torch.Size, y: torch.Size) -> Products:
    return Products(y[0] * module.weight.numel())


def _count_deformable(module: DeformableKernelConv2d, x: torch.Size, y: torch.Size) -> Products:
    positions, num_taps = _positions(y), module.kernel_size[0] * module.kernel_size[1]
    filter_size = module.weight[:, :, 0, 0].numel() * num_taps
    output = positions * filter_size
    sampling = 4 * filter_size * (positions if module.is_local else 1)  # a bilinear sample mixes four cells
    if not isinstance(module.offset, nn.Linear):
        return Products(output, sampling + positions * module.offset.weight.numel())
    offset = _count_linear(module.offset, x, torch.Size([1, 2 * num_taps]))
    return Products(output, sampling + offset.true, paper=output + sampling + offset.printed)


def _count_linear(module: nn.Linear, x: torch.Size, y: torch.Size) -> Products:
    inputs, outputs = module.in_features, y.numel()
    return Products(inputs * outputs, paper=(2 * inputs - 1) * outputs)


def _count_convolution(module: _ConvNd, x: torch.Size, y: torch.Size) -> Products:
    size = x if isinstance(module, _ConvTransposeNd) else y
    return Products(_positions(size) * module.weight.numel())


def _count_max_pooling(module: nn.MaxPool2d, x: torch.Size, y: torch.Size) -> Products:
    return Products(0, paper=_window(module.kernel_size) * y.numel())


def _count_average_pooling(module: nn.AvgPool2d, x: torch.Size, y: torch.Size) -> Products:
    return Products(0, paper=(_window(module.kernel_size) + 1) * y.numel())


def _window(kernel_size: int | tuple[int, ...]) -> int:
    """Size of a window as the released counter takes it: a window given as one number is that number."""
    return kernel_size if isinstance(kernel_size, int) else torch.Size(kernel_size).numel()


Rule = Callable[[Any, torch.Size, torch.Size], Products]
_RULES: dict[type[nn.Module], Rule] = {
    DRConv2d: _count_drconv,
    CondConv2d: _count_condconv,
    LocalConv2d: _count_local,
    DeformableKernelConv2d: _count_deformable,
    Guide: lambda module, x, y: Products(0, guide=count_guide(module, x)),
    nn.Linear: _count_linear,
    _ConvNd: _count_convolution,
    nn.MaxPool2d: _count_max_pooling,
    nn.AvgPool2d: _count_average_pooling,
}


def find_rule(module: nn.Module) -> Rule | None:
    """The rule of the module's class or its nearest base."""
    return next((_RULES[base] for base in type(module).__mro__ if base in _RULES), None)
