"""``drconv::RegionConv`` in standard ONNX operators: positions sorted by region, one product per region.

The rows of the whole batch are gathered in the order of their regions, so that a region is one stretch of them, cut off
by ``Split`` with the counts of the regions; each stretch meets its own constant filter in a ``Gemm``. The order belongs
to a mask, not to a layer: layers that share a mask share it. ``NonZero`` of the one-hot mask, (M, N), lists the
positions by region, which is the order itself: nothing is compared.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

DOMAIN, NAME = "drconv", "RegionConv"


@dataclass(frozen=True)
class Order:
    """What is shared by all layers of one mask, all int64."""

    mask: ir.Value  # (B, P)
    places: list[ir.Value]  # M times (N_r,): the positions of a region
    inverse: ir.Value  # (N,): where each position stands once they are sorted by region


class Builder:
    """Appends nodes and constants to a graph, before one of its nodes."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.constants: dict[tuple, ir.Value] = {}
        self.count = 0
        self.before: ir.Node | None = None

    def __call__(self, op: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        return self.outputs(op, 1, *inputs, **attributes)[0]

    def outputs(self, op: str, number: int, *inputs: ir.Value | None, **attributes: Any) -> list[ir.Value]:
        """The values of a new node with ``number`` outputs."""
        assert self.before is not None
        self.count += 1
        name = f"region_{op}_{self.count}"
        values = ir.convenience.convert_attributes(attributes)
        node = ir.Node("", op, inputs, values, num_outputs=number, name=name)
        for index, value in enumerate(node.outputs):
            value.name = f"{name}_{index}"
        self.graph.insert_before(self.before, node)
        return list(node.outputs)

    def constant(self, array: np.ndarray, name: str | None = None) -> ir.Value:
        """An initializer; small ones without a name are shared."""
        key = (array.dtype.str, array.shape, array.tobytes()) if name is None else (name,)
        if key not in self.constants:
            title = name or f"region_constant_{len(self.constants)}"
            value = ir.Value(name=title, const_value=ir.tensor(array, name=title))
            value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
            self.graph.register_initializer(value)
            self.constants[key] = value
        return self.constants[key]

    def shape(self, *sizes: int) -> ir.Value:
        return self.constant(np.array(sizes, np.int64))


def expand(model: ir.Model) -> int:
    """Replace every ``drconv::RegionConv`` of a model by standard operators, in place.

    Returns:
        How many there were.
    """
    build = Builder(model.graph)
    orders: dict[ir.Value, Order] = {}
    nodes = _layers(model)
    for node in nodes:
        build.before = node
        mask, matrices = node.inputs[1], node.inputs[2]
        assert mask is not None
        assert matrices is not None
        if mask not in orders:
            orders[mask] = _order(build, mask, _array(matrices).shape[0])
        y = _product(build, node, orders[mask])
        _describe(y, node.outputs[0])
        ir.convenience.replace_all_uses_with(node.outputs[0], y, replace_graph_outputs=True)
    for node in nodes:
        model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    model.opset_imports.pop(DOMAIN, None)
    return len(nodes)


def use_rows(model: ir.Model) -> int:
    """Let every ``drconv::RegionConv`` take and give (B, H, W, channels), as onnxruntime's operator does, in place.

    onnxruntime takes the transposition into the copy between its blocked layout and the usual one.

    Returns:
        How many there are.
    """
    build = Builder(model.graph)
    nodes = _layers(model)
    for node in nodes:
        build.before = node
        node.replace_input_with(0, build("Transpose", node.inputs[0], perm=[0, 2, 3, 1]))
        limit = node.attributes.get("limit")
        node.attributes["limit"] = ir.AttrFloat32("limit", -1.0 if limit is None else limit.as_float())
        y = node.outputs[0]
        rows = ir.Node(DOMAIN, NAME, node.inputs, node.attributes.values(), num_outputs=1, name=node.name)
        rows.outputs[0].name = f"{y.name}_rows"
        model.graph.insert_before(node, rows)
        image = build("Transpose", rows.outputs[0], perm=[0, 3, 1, 2])
        _describe(image, y)
        ir.convenience.replace_all_uses_with(y, image, replace_graph_outputs=True)
    for node in nodes:
        model.graph.remove(node, safe=True)
    return len(nodes)


def _layers(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if (node.domain, node.op_type) == (DOMAIN, NAME)]


def _order(build: Builder, mask: ir.Value, regions: int) -> Order:
    """Where each region's positions are, from (B, H, W)."""
    line = build("Reshape", mask, build.shape(-1))
    zero, one = build.constant(np.array(0, np.int64)), build.constant(np.array(1, np.int64))
    positions = build("Range", zero, build("Squeeze", build("Shape", line)), one)
    places = [
        build("Compress", positions, build("Equal", line, build.constant(np.array(region, np.int64))), axis=0)
        for region in range(regions)
    ]
    order = build("Concat", *places, axis=0)
    inverse = build("ScatterElements", order, order, positions, axis=0)
    return Order(build("Reshape", mask, build.shape(0, -1)), places, inverse)


def _product(build: Builder, node: ir.Node, order: Order) -> ir.Value:
    """x (B, D, H, W), its order, matrices (M, D, O), bias (O), scale (B, M) or None to (B, O, H, W)."""
    x, _, matrices, bias, scale = (*node.inputs, None)[:5]
    assert matrices is not None
    assert bias is not None
    filters = _array(matrices)
    _, depth, outputs = filters.shape
    rows = build("Reshape", build("Transpose", x, perm=[0, 2, 3, 1]), build.shape(-1, depth))
    if scale is not None:
        factors = build("Reshape", build("GatherElements", scale, order.mask, axis=1), build.shape(-1, 1))
        rows = build("Mul", rows, factors)
    if outputs > depth:  # a Gemm with a bias fills its output with it first: a column of ones is less to write
        rows = build("Pad", rows, build.shape(0, 0, 0, 1), build.constant(np.array(1, filters.dtype)))
        columns = np.broadcast_to(_array(bias), (len(filters), 1, outputs))
        filters, bias = np.concatenate([filters, columns], 1), None
    limit = node.attributes.get("limit")
    products = []
    for region, (places, matrix) in enumerate(zip(order.places, filters, strict=True)):
        stretch = build("Gather", rows, places, axis=0)
        product = build("Gemm", stretch, build.constant(matrix, f"{matrices.name}_{region}"), bias)
        is_open = limit is not None and limit.as_float() == float("inf")
        products.append(build("Relu", product) if is_open else product)  # onnxruntime joins it to the Gemm
    y = build("Concat", *products, axis=0)
    if limit is not None and limit.as_float() != float("inf"):
        zero, upper = (build.constant(np.array(end, filters.dtype)) for end in (0, limit.as_float()))
        y = build("Clip", y, zero, upper)
    y = build("Gather", y, order.inverse, axis=0)
    assert x is not None
    assert x.shape is not None
    y = build("Reshape", y, build.shape(-1, *(int(str(side)) for side in x.shape[2:]), outputs))
    return build("Transpose", y, perm=[0, 3, 1, 2])


def _describe(value: ir.Value, like: ir.Value) -> None:
    """Gives a value the shape and type of the one that it stands for."""
    value.shape = like.shape
    if like.dtype is not None:
        value.dtype = like.dtype


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None  # a buffer of ExportedDRConv
    return value.const_value.numpy()
