"""Replace convolutions of any network, in place, by DRConv or one of its rivals."""

import difflib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from drconv.nn.condconv import CondConv2d, RoutedSequential, Routing, zero_routing
from drconv.nn.conv import DRConv2d
from drconv.nn.cost import Call, Size, count_parameters, count_products, image_shape, trace_calls
from drconv.nn.deformable import DeformableKernelConv2d
from drconv.nn.guide import Guide, GuidedSequential
from drconv.nn.local import LocalConv2d
from drconv.nn.selection import Layers, find_blocks, first_convolution, resolve_padding, select_layers

Replacement = DRConv2d | CondConv2d | LocalConv2d | DeformableKernelConv2d
KINDS: dict[str, type[Replacement]] = {
    "drconv": DRConv2d,
    "condconv": CondConv2d,
    "local": LocalConv2d,
    "deformable": DeformableKernelConv2d,
}
SHARING = {"drconv": "guide", "condconv": "routing"}  # the option that says who shares
GUIDE_OPTIONS = {  # options of DRConv2d that belong to a guide, and their names there
    "guide_stride": "stride",
    "guide_norm": "norm",
    "guide_gradient": "gradient",
    "feature_gradient": "feature_gradient",
    "guide_frozen": "frozen",
}


@dataclass(frozen=True)
class Row:
    """One replaced layer, or a guide or routing that was added to a block.

    Multiply-adds are true ones for one image, None where the network could not be run.
    """

    name: str
    kind: str
    parameters_before: int
    parameters_after: int
    multiply_adds_before: int | None
    multiply_adds_after: int | None


@dataclass(frozen=True)
class Substitution:
    """What ``substitute`` did: iterate for the rows, ``print`` for a table.

    Attributes:
        rows: replaced layers in the network's order, then the added guides or routings.
        input_size: channels, rows, columns for which multiply-adds were counted.
        note: why they could not be counted, or None.
    """

    rows: list[Row]
    input_size: tuple[int, ...]
    note: str | None

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def total(self, column: str) -> int | None:
        """Sum of a column (a field of ``Row``) over the rows, None where it was not counted."""
        values = [getattr(row, column) for row in self.rows]
        return None if None in values else sum(values)

    def __str__(self) -> str:
        columns = ("parameters_before", "parameters_after", "multiply_adds_before", "multiply_adds_after")
        size = "x".join(map(str, self.input_size))
        lines = [["layer", "now", "parameters", "now", f"multiply-adds, {size}", "now"]]
        lines += [[row.name, row.kind, *(_format(getattr(row, column)) for column in columns)] for row in self.rows]
        lines.append(["total", "", *(_format(self.total(column)) for column in columns)])
        widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join(text if self.note is None else [*text, f"multiply-adds were not counted: {self.note}"])


def substitute(
    network: nn.Module,
    conv: str = "drconv",
    layers: Layers = None,
    *,
    from_pretrained: bool = False,
    input_size: Size = 224,
    **options: Any,
) -> Substitution:
    """Replace convolutions of a network, in place.

    Stride, padding, dilation, groups, bias, device, type, memory format, mode and ``requires_grad`` are kept. New
    filters have the spread of those they replace, so the network's own initialisation is respected; biases are kept,
    and by ``local`` the filters too. Parameters that convolutions share, and hooks on gradients, are not.

    With ``guide="block"`` (D2) the DRConvs inside one ``nn.Sequential`` share a 1x1 guide, computed on its input by
    the ``GuidedSequential`` that takes its place (``find_blocks`` has the rule); all other DRConvs own their guide,
    k x k, which costs the same for the only 1x1 DRConv of a block. ``routing="block"`` does so for CondConv. Keys of
    the state dict stay, apart from the replaced layers'.

    Args:
        network: any module; nothing is changed if an error is raised.
        conv: ``drconv``, ``condconv``, ``local`` or ``deformable``.
        layers: names, glob patterns or a predicate over name and module, see ``select_layers``; None for the network's
            own list ``replaceable_layers``.
        from_pretrained: start with the present filters, in every region and expert, so that the output is unchanged.
        input_size: side in pixels, (H, W) or (C, H, W), for the table; ``local`` is built for this size.
        options: keyword options of the new layer (``regions=8``, ``generator="grouped"``, ``experts=8``, ...), with
            ``guide`` or ``routing`` being ``"block"`` or ``"own"``, and ``groups`` above 1 to change that of
            convolutions without groups (D4).

    Returns:
        A table of the replaced layers, their parameters and multiply-adds before and after.

    Raises:
        ValueError: nothing matches, a layer cannot be replaced, or an option does not fit.
    """
    options = _check_options(conv, from_pretrained, options)
    selected = select_layers(network, layers)
    sharing = options.pop(SHARING[conv]) if conv in SHARING else "own"
    blocks = find_blocks(network, selected) if sharing == "block" else {}
    shape = image_shape(input_size)
    calls, note = _trace(network, shape, {*selected, *blocks}, is_needed=conv == "local")
    shared = {name for names in blocks.values() for name in names}
    layer_options = {name: options | _place_options(name, conv, name in shared, calls) for name in selected}
    new_layers = {name: _replace(old, conv, from_pretrained, layer_options[name]) for name, old in selected.items()}
    old_blocks = {name: network.get_submodule(name) for name in blocks}
    heads = {name: _make_head(block, conv, from_pretrained, options) for name, block in old_blocks.items()}
    for name, head in heads.items():
        if not any(selected[layer].weight.requires_grad for layer in blocks[name]):
            head.requires_grad_(False)
    rows = [_describe(name, selected[name], new, calls) for name, new in new_layers.items()]
    rows += [_describe(f"{name}.{SHARING[conv]}", None, head, calls) for name, head in heads.items()]
    _install(network, {id(selected[name]): new for name, new in new_layers.items()})
    _install(network, {id(old_blocks[name]): _wrap(old_blocks[name], head) for name, head in heads.items()})
    return Substitution(rows, shape, note)


def _check_options(conv: str, from_pretrained: bool, options: dict[str, Any]) -> dict[str, Any]:
    """The options with defaults for sharing; errors for what the layer does not know."""
    if conv not in KINDS:
        raise ValueError(f"conv={conv!r} is not known; use one of {', '.join(KINDS)}")
    parameters = inspect.signature(KINDS[conv]).parameters.values()
    known = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"device", "dtype", "input_size"}
    for name in options.keys() - known - {"groups"}:
        near = difflib.get_close_matches(name, known, n=1) or sorted(known) or ["none"]
        raise ValueError(f"{name} is not an option of conv={conv!r}; it knows {', '.join(near)}")
    options = dict(options)
    if conv in SHARING:
        sharing = options.setdefault(SHARING[conv], "block")
        if sharing not in ("block", "own"):
            raise ValueError(f"{SHARING[conv]}={sharing!r} is not known; use 'block' or 'own'")
    if options.get("groups", 1) == 1:
        options.pop("groups", None)
    elif from_pretrained:
        raise ValueError(f"groups={options['groups']} changes the filters and cannot start from pretrained ones")
    return options


def _trace(
    network: nn.Module, shape: tuple[int, ...], names: set[str], is_needed: bool
) -> tuple[dict[str, list[Call]] | None, str | None]:
    """Calls of the named modules by name, or None and the reason."""
    try:
        calls = trace_calls(network, shape, lambda name, _: name in names)
    except ValueError as error:
        if is_needed:
            raise
        return None, str(error)
    return {name: [call for call in calls if call.name == name] for name in names}, None


def _place_options(name: str, conv: str, is_shared: bool, calls: dict[str, list[Call]] | None) -> dict[str, Any]:
    """Options that depend on where in the network the layer stands."""
    if conv in SHARING:
        return {SHARING[conv]: "shared" if is_shared else "own"}
    if conv != "local":
        return {}
    sizes = {tuple(call.x[2:]) for call in (calls or {})[name]}
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(sizes))) or "no input at all"
        raise ValueError(f"{name} cannot be a local convolution: it sees {found}, and needs one input size")
    return {"input_size": sizes.pop()}


def _replace(old: nn.Conv2d, conv: str, from_pretrained: bool, options: dict[str, Any]) -> nn.Module:
    """A new layer with the geometry and the start of the old one."""
    options = dict(options)
    groups = options.pop("groups", 1)
    geometry: dict[str, Any] = {
        "kernel_size": old.kernel_size,
        "stride": old.stride,
        "padding": resolve_padding(old),
        "dilation": old.dilation,
        "groups": groups if old.groups == 1 else old.groups,
        "bias": old.bias is not None,
        "device": old.weight.device,
        "dtype": old.weight.dtype,
    }
    new = KINDS[conv](old.in_channels, old.out_channels, **geometry, **options)
    if from_pretrained or conv == "local":
        new.load_filter(old.weight.detach(), None if old.bias is None else old.bias.detach())
    else:
        spread = None if old.weight.is_meta else float(old.weight.detach().square().mean().sqrt())
        new.reset_parameters(std=spread)
        _keep_bias(new, old.bias)
    if not old.weight.requires_grad:
        new.requires_grad_(False)
    if old.bias is not None and isinstance(new.bias, nn.Parameter):
        new.bias.requires_grad_(old.bias.requires_grad)
    return new.train(old.training)


@torch.no_grad()
def _keep_bias(new: Replacement, bias: Tensor | None) -> None:
    if isinstance(new, CondConv2d):
        new.load_bias(bias)
    elif new.bias is not None and bias is not None:
        new.bias.copy_(bias)


def _make_head(block: nn.Module, conv: str, from_pretrained: bool, options: dict[str, Any]) -> Guide | Routing:
    """The guide or routing that a block's layers share."""
    first: Any = first_convolution(block)
    place: dict[str, Any] = {"device": first.weight.device, "dtype": first.weight.dtype}
    if conv == "condconv":
        routing = Routing(first.in_channels, options.get("experts", 8), **place)
        if from_pretrained:
            zero_routing(routing)
        return routing
    given = {GUIDE_OPTIONS[name]: value for name, value in options.items() if name in GUIDE_OPTIONS}
    return Guide(first.in_channels, options.get("regions", 8), **given, **place)


def _wrap(block: nn.Module, head: Guide | Routing) -> nn.Module:
    """The block with its shared head, and with the attributes that its class had added."""
    wrapped = GuidedSequential(block, head) if isinstance(head, Guide) else RoutedSequential(block, head)  # type: ignore[arg-type]
    for name, value in vars(block).items():
        if name not in vars(wrapped):
            setattr(wrapped, name, value)
    return wrapped


def _install(network: nn.Module, replacements: dict[int, nn.Module]) -> None:
    """Put new modules in every place that holds an old one (by identity)."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in replacements:
                parent._modules[name] = replacements[id(child)]


def _describe(name: str, old: nn.Module | None, new: nn.Module, calls: dict[str, list[Call]] | None) -> Row:
    before = after = None
    if calls is not None:
        seen = calls[name if old is not None else name.rpartition(".")[0]]
        before = 0 if old is None else sum(count_products(call).true for call in seen)
        after = sum(count_products(Call(name, new, call.x, _output_shape(new, call))).true for call in seen)
    parameters = 0 if old is None else count_parameters(old)
    return Row(name, type(new).__name__, parameters, count_parameters(new), before, after)


def _output_shape(new: nn.Module, call: Call) -> torch.Size:
    return torch.Size([1, new.out_features]) if isinstance(new, Routing) else call.y


def _format(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
