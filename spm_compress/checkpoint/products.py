"""The products with constant matrices in an ONNX graph: what a fit reads, and what an export replaces.

1. x E^T with E (out, in): MatMul; Gemm that transposes at most E, with alpha and beta 1; Conv with a 1x1 kernel, one
   group, stride 1 and no padding.
2. The matrix is an initializer or a Constant node, or one of them behind Identity, Transpose, Cast or DequantizeLinear.
3. Bodies of If, Loop and Scan are searched too. A local function that holds such a product is inlined
   first: its matrix may be another one at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

__all__ = ["Product", "inline_products", "products", "replace_matrix"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Product:
    """One product and its matrix.

    root: the value that holds the stored tensor; steps: the nodes between it and the product.
    """

    node: ir.Node
    root: ir.Value
    tensor: ir.TensorProtocol
    steps: tuple[ir.Node, ...]

    @property
    def is_quantized(self) -> bool:
        """Whether the tensor is stored as integers."""
        return any(step.op_type == "DequantizeLinear" for step in self.steps)

    @property
    def stored_as_e(self) -> bool:
        """Whether the operand is E (out, in) itself; a MatMul has E^T."""
        return self.node.op_type == "Conv" or bool(_options(self.node).get("transB", 0))

    @property
    def is_turned(self) -> bool:
        """Whether E is the transpose of the tensor as it is stored."""
        turns = sum(step.op_type == "Transpose" for step in self.steps) + (not self.stored_as_e)
        return turns % 2 == 1

    def matrix(self) -> np.ndarray:
        """Return E (out, in) in C order, in the dtype in which the product is computed."""
        values = self.tensor.numpy()
        for step in self.steps:
            values = _applied(step, values)
        if self.node.op_type == "Conv":
            values = values.reshape(values.shape[:2])
        return np.ascontiguousarray(values if self.stored_as_e else values.T)


def products(model: ir.Model) -> Iterator[Product]:
    """Yield every product of a model's graph and its subgraphs, under the rules above."""
    for node in list(model.graph.all_nodes()):
        if not _is_product(node):
            continue
        traced = _trace(node.inputs[1])
        if traced is None:
            continue
        root, tensor, steps = traced
        rank = len(tensor.shape)
        if node.op_type == "Conv":
            if rank < 3 or any(size != 1 for size in tensor.shape.numpy()[2:]) or not _is_pointwise(node):
                continue
        elif rank != 2:
            continue
        if steps or tensor.dtype.is_floating_point():
            yield Product(node, root, tensor, steps)


def replace_matrix(model: ir.Model, product: Product, matrix: np.ndarray, name: str) -> None:
    """Let a product compute with another E (out, in), under a new initializer of that name if there is none yet."""
    stored = matrix if product.stored_as_e else matrix.T
    if product.node.op_type == "Conv":
        stored = stored.reshape(*stored.shape, *[1] * (len(product.tensor.shape) - 2))
    if name not in model.graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(stored.astype(product.matrix().dtype)), name=name)
        model.graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(stored.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    product.node.replace_input_with(1, model.graph.initializers[name])


def inline_products(model: ir.Model) -> None:
    """Inline the local functions that hold a product whose matrix may be a constant."""

    def holds_product(function: ir.Function) -> bool:
        return any(_is_product(node) and _may_be_constant(node.inputs[1]) for node in function.all_nodes())

    if any(holds_product(function) for function in model.functions.values()):
        InlinePass(criteria=holds_product)(model)


def _is_product(node: ir.Node) -> bool:
    if node.domain not in _STANDARD or node.op_type not in _PRODUCTS or len(node.inputs) < 2 or not node.outputs:
        return False
    options = _options(node)
    return not options.get("transA", 0) and options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0


def _is_pointwise(node: ir.Node) -> bool:
    options = _options(node)
    return (
        options.get("group", 1) == 1
        and all(stride == 1 for stride in options.get("strides", ()))
        and not any(options.get("pads", ()))
    )


def _options(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _trace(value: ir.Value | None) -> tuple[ir.Value, ir.TensorProtocol, tuple[ir.Node, ...]] | None:
    """Follow an operand back to the tensor that is stored."""
    steps: list[ir.Node] = []
    while value is not None:
        tensor = _stored(value)
        if tensor is not None:
            return value, tensor, tuple(reversed(steps))
        node = value.producer()
        if node is None or not _is_step(node):
            return None
        steps.append(node)
        value = node.inputs[0]
    return None


def _is_step(node: ir.Node) -> bool:
    if node.domain not in _STANDARD:
        return False
    if node.op_type == "DequantizeLinear":
        others = [value for value in node.inputs[1:] if value is not None]
        return all(_stored(value) is not None for value in others) and not _options(node).get("block_size", 0)
    if node.op_type == "Cast":
        return ir.DataType(_options(node)["to"]).is_floating_point()
    return node.op_type in ("Identity", "Transpose")


def _may_be_constant(value: ir.Value | None) -> bool:
    while value is not None:
        node = value.producer()
        if node is None or node.op_type == "Constant":
            return True
        if not _is_step(node) and node.op_type != "DequantizeLinear":
            return False
        value = node.inputs[0]
    return False


def _stored(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a Constant node.

    Some exporters list every initializer as an input too, whose default it then is; nobody feeds weights that way.
    """
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and node.domain in _STANDARD and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    return None


def _applied(step: ir.Node, values: np.ndarray) -> np.ndarray:
    options = _options(step)
    match step.op_type:
        case "Transpose":
            return values.transpose(options.get("perm"))
        case "Cast":
            return values.astype(ir.DataType(options["to"]).numpy())
        case "DequantizeLinear":
            return _dequantized(step, values, options)
        case _:
            return values


def _dequantized(step: ir.Node, values: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    scale, zero = (None if value is None else _stored(value) for value in (*step.inputs[1:], None, None)[:2])
    assert scale is not None

    def along_axis(each: np.ndarray) -> np.ndarray:
        shape = [1] * values.ndim
        if each.size > 1:
            shape[int(options.get("axis", 1))] = -1
        return each.reshape(shape)

    offset = 0 if zero is None else along_axis(zero.numpy()).astype(np.int32)
    exact: np.ndarray = (values.astype(np.int32) - offset).astype(np.float32) * along_axis(scale.numpy())
    return exact
