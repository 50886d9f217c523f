"""The products with constant matrices in an ONNX graph: what a fit reads, and what an export replaces.

1. A matrix E (out, in) in x E^T or E x: an operand of MatMul or Gemm, on either side, or the 1x1 kernel of a Conv of
   one group. Rules 4 and 5 of `Product.is_plain` say which of them a chain of stages can take the place of; at the
   others the multiplied-out matrix stands in for E.
2. The matrix is an initializer or a Constant node, or one of them behind Identity, Transpose, Cast or DequantizeLinear.
3. Bodies of If, Loop and Scan are searched too. Local functions that hold such a product, or call one that does, are
   inlined first: the matrix may be another one at every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from spm_compress.errors import SourceError, first_line

__all__ = ["Product", "align_opsets", "inline_products", "is_step", "products", "replace_matrix", "stored_tensor"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Product:
    """One product and its matrix.

    operand: which input of the node the matrix is; root: the value that holds the stored tensor; steps: the nodes
    between it and the product.
    """

    node: ir.Node
    operand: int
    root: ir.Value
    tensor: ir.TensorProtocol
    steps: tuple[ir.Node, ...]

    @property
    def is_quantized(self) -> bool:
        """Whether the tensor is stored as integers."""
        return any(step.op_type == "DequantizeLinear" for step in self.steps)

    @property
    def is_plain(self) -> bool:
        """Whether the product is x E^T and nothing else, so that a chain of stages can take its place.

        4. A Gemm has alpha and beta 1 and does not transpose x; a Conv has stride 1 and no padding.
        5. E stands on the right.
        """
        options = _options(self.node)
        if self.node.op_type == "Conv":
            return all(stride == 1 for stride in options.get("strides", ())) and not any(options.get("pads", ()))
        is_bare = options.get("alpha", 1.0) == 1.0 and options.get("beta", 1.0) == 1.0
        return self.operand == 1 and is_bare and not options.get("transA", 0)

    @property
    def operand_is_e(self) -> bool:
        """Whether the operand is E (out, in) itself and not E^T."""
        options = _options(self.node)
        if self.node.op_type == "Gemm":
            return bool(options.get("transB", 0)) if self.operand else not options.get("transA", 0)
        return self.node.op_type == "Conv" or self.operand == 0

    @property
    def is_transposed(self) -> bool:
        """Whether E is the transpose of the tensor as it is stored."""
        return (_order(self.steps, len(self.tensor.shape))[0] == 1) == self.operand_is_e

    @property
    def shape(self) -> tuple[int, int]:
        """Of E: (out_features, in_features)."""
        out, into = self.tensor.shape.numpy()[:2]
        return (into, out) if self.is_transposed else (out, into)

    @property
    def held(self) -> tuple[ir.Value, bool]:
        """The first value of floating point on the way from the tensor to the product, and whether it is E^T."""
        at = max((i + 1 for i, step in enumerate(self.steps) if step.op_type == "DequantizeLinear"), default=0)
        value = self.steps[at - 1].outputs[0] if at else self.root
        return value, (_order(self.steps[at:], len(self.tensor.shape))[0] == 1) == self.operand_is_e

    def matrix(self) -> np.ndarray:
        """Return E (out, in) in C order, in the dtype in which the product is computed."""
        values = self.tensor.numpy()
        for step in self.steps:
            values = _applied(step, values)
        if self.node.op_type == "Conv":
            values = values.reshape(values.shape[:2])
        return np.ascontiguousarray(values if self.operand_is_e else values.T)


def products(model: ir.Model) -> Iterator[Product]:
    """Yield every product of a model's graph and its subgraphs, under the rules above."""
    for node in list(model.graph.all_nodes()):
        for operand in _operands(node):
            traced = _trace(node.inputs[operand])
            if traced is None:
                continue
            root, tensor, steps = traced
            rank = len(tensor.shape)
            if node.op_type == "Conv":
                if rank < 3 or any(size != 1 for size in tensor.shape.numpy()[2:]):
                    continue
                if _order(steps, rank) not in [(*each, *range(2, rank)) for each in ((0, 1), (1, 0))]:
                    continue
            elif rank != 2:
                continue
            if tensor.dtype.is_floating_point() or any(step.op_type == "DequantizeLinear" for step in steps):
                yield Product(node, operand, root, tensor, steps)


def replace_matrix(model: ir.Model, product: Product, matrix: np.ndarray, name: str) -> None:
    """Let a product compute with another E (out, in), under a new initializer of that name if there is none yet."""
    stored = matrix if product.operand_is_e else matrix.T
    if product.node.op_type == "Conv":
        stored = stored.reshape(*stored.shape, *[1] * (len(product.tensor.shape) - 2))
    if name not in model.graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(stored.astype(product.matrix().dtype)), name=name)
        model.graph.register_initializer(
            ir.Value(name=name, shape=ir.Shape(stored.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    product.node.replace_input_with(product.operand, model.graph.initializers[name])


def inline_products(model: ir.Model) -> None:
    """Inline the local functions that hold a product whose matrix may be a constant, and those that call them.

    Raises SourceError for functions that cannot be inlined.
    """
    align_opsets(model)
    bound = _bound_inputs(model)
    wanted: set[ir.OperatorIdentifier] = set()
    while True:
        found = {
            name
            for name, function in model.functions.items()
            if any(_multiplies(node, bound) or node.op_identifier() in wanted for node in function.all_nodes())
        }
        if found <= wanted:
            break
        wanted |= found
    if wanted:
        try:
            InlinePass(criteria=lambda function: function.identifier() in wanted)(model)
        except Exception as error:  # onnx_ir raises many types: cycles, opsets that differ, graphs as parameters
            cause = error.__cause__ or error
            raise SourceError(
                f"its local functions cannot be inlined ({first_line(cause)}); inline them with onnx.inliner first"
            ) from error


def align_opsets(model: ir.Model) -> None:
    """Let local functions import the opsets that the model does, where their operators are the same in both."""
    for function in model.functions.values():
        for domain, version in list(function.opset_imports.items()):
            wanted = model.opset_imports.setdefault(domain, version)
            nodes = [node for node in function.all_nodes() if node.domain == domain]
            if all(_version(node, version) == _version(node, wanted) for node in nodes):
                function.opset_imports[domain] = wanted


def _version(node: ir.Node, opset: int) -> int:
    """Return the opset that brought an operator as it is in another; that one itself where onnx does not know it."""
    try:
        return int(onnx.defs.get_schema(node.op_type, opset, node.domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def _operands(node: ir.Node) -> tuple[int, ...]:
    """Return which inputs of a node a matrix may be, the usual one first; of two constants only that one."""
    if node.domain not in _STANDARD or node.op_type not in _PRODUCTS or len(node.inputs) < 2 or not node.outputs:
        return ()
    if node.op_type == "Conv":
        return (1,) if _options(node).get("group", 1) == 1 else ()
    return (1,) if _trace(node.inputs[1]) is not None else (0,)


def _multiplies(node: ir.Node, bound: set[ir.Value]) -> bool:
    if node.domain not in _STANDARD or node.op_type not in _PRODUCTS:
        return False
    return any(_is_constant(value, bound) for value in node.inputs[:2])


def _bound_inputs(model: ir.Model) -> set[ir.Value]:
    """Return the inputs of local functions that some call gives a constant."""
    bound: set[ir.Value] = set()
    nodes = [*model.graph.all_nodes(), *(node for each in model.functions.values() for node in each.all_nodes())]
    calls = [node for node in nodes if node.op_identifier() in model.functions]
    while True:
        found = {
            inner
            for call in calls
            for value, inner in zip(call.inputs, model.functions[call.op_identifier()].inputs, strict=False)
            if _is_constant(value, bound)
        }
        if found <= bound:
            return bound
        bound |= found


def _order(steps: tuple[ir.Node, ...], rank: int) -> tuple[int, ...]:
    """Return which axis of the stored tensor each axis is after the steps."""
    order = tuple(range(rank))
    for step in steps:
        if step.op_type == "Transpose":
            perm = _options(step).get("perm") or tuple(reversed(range(rank)))
            order = tuple(order[axis] for axis in perm)
    return order


def _options(node: ir.Node) -> dict[str, Any]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _trace(value: ir.Value | None) -> tuple[ir.Value, ir.TensorProtocol, tuple[ir.Node, ...]] | None:
    """Follow an operand back to the tensor that is stored."""
    steps: list[ir.Node] = []
    while value is not None:
        tensor = stored_tensor(value)
        if tensor is not None:
            return value, tensor, tuple(reversed(steps))
        node = value.producer()
        if node is None or not is_step(node):
            return None
        steps.append(node)
        value = node.inputs[0]
    return None


def is_step(node: ir.Node) -> bool:
    """Say whether a node hands a matrix on as it is, turned, or in another dtype (rule 2)."""
    if node.domain not in _STANDARD:
        return False
    if node.op_type == "DequantizeLinear":
        others = [value for value in node.inputs[1:] if value is not None]
        return all(stored_tensor(value) is not None for value in others) and not _options(node).get("block_size", 0)
    if node.op_type == "Cast":
        return ir.DataType(_options(node)["to"]).is_floating_point()
    return node.op_type in ("Identity", "Transpose")


def _is_constant(value: ir.Value | None, bound: set[ir.Value]) -> bool:
    while value is not None:
        node = value.producer()
        if value in bound or stored_tensor(value) is not None or (node is not None and node.op_type == "Constant"):
            return True
        if node is None or not (is_step(node) or node.op_type == "DequantizeLinear"):
            return False
        value = node.inputs[0]
    return False


def stored_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or of a Constant node.

    Some exporters list every initializer as an input too, whose default it then is; nobody feeds weights that way.
    """
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and node.domain in _STANDARD and node.op_type == "Constant" and "value" in node.attributes:
        attribute = node.attributes["value"]
        return None if attribute.is_ref() else attribute.as_tensor()
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
    scale, zero = (None if value is None else stored_tensor(value) for value in (*step.inputs[1:], None, None)[:2])
    assert scale is not None

    def along_axis(each: np.ndarray) -> np.ndarray:
        shape = [1] * values.ndim
        if each.size > 1:
            shape[int(options.get("axis", 1))] = -1
        return each.reshape(shape)

    offset = 0 if zero is None else along_axis(zero.numpy()).astype(np.int32)
    exact: np.ndarray = (values.astype(np.int32) - offset).astype(np.float32) * along_axis(scale.numpy())
    return exact
