"""An ONNX graph on its way to torch: its products as calls of linear layers, the rest of its tensors as what trains.

1. A matrix E (out, in) that the main graph reads in plain products only (`Product.is_plain`) becomes the weight of an
   nn.Linear, called at each of them, so that a form can take its place.
2. Any other matrix is E, too, and what the graph reads is made of it, turned or as a kernel.
3. Of the other tensors those are learnt that nodes read as their weights, scales and biases (_LEARNT): not means and
   variances of norms, exponents, shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.products import Product, products
from spm_compress.checkpoint.uses import is_handed_out, readers

__all__ = ["DOMAIN", "Placed", "are_linear", "by_root", "place"]

# Of the operator `Linear`, whose attribute `module` names the layer.
DOMAIN = "spm_compress.imported"
# Which inputs of a node are its weights, scales and biases.
_LEARNT: Mapping[str, tuple[int, ...]] = {
    **dict.fromkeys(("MatMul", "Add", "Mul"), (0, 1)),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "InstanceNormalization"), (1, 2)),
    **dict.fromkeys(("LayerNormalization", "GroupNormalization"), (1, 2)),
    **{"Gather": (0,), "PRelu": (1,), "RMSNormalization": (1,)},
}


@dataclass(frozen=True)
class Placed:
    """Where the tensors of a graph went.

    linears: name of a layer -> it; names: name of a tensor -> that of the layer whose weight it became; values: name of
    a tensor -> the initializer that holds it; learnt: names of those that train.
    """

    linears: dict[str, nn.Linear] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    values: dict[str, ir.Value] = field(default_factory=dict)
    learnt: set[str] = field(default_factory=set)


def place(model: ir.Model) -> Placed:
    """Rewrite a graph without Constant nodes, in place, under the rules above."""
    placed = Placed()
    found = by_root(model)
    for name, root in list(model.graph.initializers.items()):
        inside = found.get(name, [])
        if inside and are_linear(inside, model):
            linear = f"linear_{len(placed.linears)}"
            placed.linears[linear] = _linear(inside[0])
            placed.names[name] = linear
            for product in inside:
                _call_linear(product, linear)
        elif inside:
            placed.values[name] = _as_matrix(model, inside[0])
            placed.learnt.add(name)
        else:
            placed.values[name] = root
            if _is_learnt(root):
                placed.learnt.add(name)
    return placed


def by_root(model: ir.Model) -> dict[str, list[Product]]:
    """Return the products with each matrix that the main graph holds."""
    found: dict[str, list[Product]] = {}
    for product in products(model):
        if product.root.graph is model.graph and product.root.name:
            found.setdefault(product.root.name, []).append(product)
    return found


def are_linear(inside: Sequence[Product], model: ir.Model) -> bool:
    """Whether products with one matrix are all that reads it, plain, in the main graph, and turn it the same way."""
    root, is_transposed = inside[0].root, inside[0].is_transposed
    known = {
        (id(each.node), each.operand)
        for each in inside
        if each.is_plain
        and each.operand == 1
        and each.node.graph is model.graph
        and each.is_transposed == is_transposed
    }
    return not is_handed_out(root) and all((id(node), index) in known for node, index in readers(root))


def _is_learnt(root: ir.Value) -> bool:
    """Whether a tensor is more than one number, and all that read it take it for a weight, scale or bias."""
    tensor = root.const_value
    if tensor is None or not tensor.dtype.is_floating_point() or tensor.size < 2 or root.is_graph_output():
        return False
    return all(index in _LEARNT.get(node.op_type, ()) for node, index in root.uses())


def _linear(product: Product) -> nn.Linear:
    out, into = product.shape
    linear = nn.Linear(into, out, bias=False, device="meta")
    linear.weight = nn.Parameter(torch.from_numpy(product.matrix().astype(np.float32)))
    return linear


def _call_linear(product: Product, linear: str) -> None:
    """Let a linear layer compute a plain product; what a Gemm or Conv adds is added behind it."""
    node, graph = product.node, product.node.graph
    assert isinstance(graph, ir.Graph)
    added: list[ir.Node] = []

    def then(operator: str, *inputs: ir.Value | None, domain: str = "", **attributes: Any) -> ir.Value:
        given = [ir.convenience.convert_attribute(name, value) for name, value in attributes.items()]
        added.append(ir.Node(domain, operator, inputs, given))
        return added[-1].outputs[0]

    rank = len(product.tensor.shape)
    is_conv = node.op_type == "Conv"
    x = node.inputs[0]
    if is_conv:
        x = then("Transpose", x, perm=[0, *range(2, rank), 1])
    y = then("Linear", x, domain=DOMAIN, module=linear)
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        y = then("Add", y, node.inputs[2])
    if is_conv:
        y = then("Transpose", y, perm=[0, rank - 1, *range(1, rank - 1)])
    old = node.outputs[0]
    y.type, y.shape = old.type, old.shape
    graph.insert_before(node, added)
    ir.convenience.replace_all_uses_with(old, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _as_matrix(model: ir.Model, product: Product) -> ir.Value:
    """Let the graph make what it reads of E (out, in), a new initializer, which is returned."""
    held, is_turned = product.held
    e = _initializer(model, ir.tensor(product.matrix()), f"{product.root.name}.matrix")
    nodes = [ir.Node("", "Transpose" if is_turned else "Identity", [e])]
    ones = [1] * (len(product.tensor.shape) - 2)
    if ones:
        sizes = np.array([*(product.shape[::-1] if is_turned else product.shape), *ones], np.int64)
        kernel = _initializer(model, ir.tensor(sizes), f"{product.root.name}.kernel")
        nodes.append(ir.Node("", "Reshape", [nodes[0].outputs[0], kernel]))
    ir.convenience.replace_all_uses_with(held, nodes[-1].outputs[0])
    model.graph.insert_before(model.graph[0], nodes)
    return e


def _initializer(model: ir.Model, tensor: ir.TensorProtocol, name: str) -> ir.Value:
    free = free_name(name, model.graph.initializers)
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=free, type=ir.TensorType(tensor.dtype), shape=shape, const_value=tensor)
    model.graph.register_initializer(value)
    return value
