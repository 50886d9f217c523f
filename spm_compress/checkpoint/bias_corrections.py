"""What calibration adds to the outputs of a layer, put into the bias that is there.

1. A constant that is added to the product, by a Gemm or Conv itself or by an Add that alone reads it, takes the
   correction in.
2. Where there is none, an Add of the correction follows the product.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.products import Product

__all__ = ["correct_bias"]


def correct_bias(model: ir.Model, product: Product, correction: np.ndarray, name: str) -> None:
    """Raise the outputs of a product by correction (out_features,), in place; name: the new initializer's."""
    node = product.node
    own_bias = node.inputs[2] if len(node.inputs) > 2 else None
    if own_bias is not None and _raise(model, node, 2, correction, name):
        return
    output = node.outputs[0]
    readers = list(output.uses())
    if own_bias is None and len(readers) == 1 and not output.is_graph_output() and readers[0].node.op_type == "Add":
        reader, index = readers[0]
        if node.op_type != "Conv" and _raise(model, reader, 1 - index, correction, name):
            return
    _add_after(model, node, correction, name)


def _raise(model: ir.Model, node: ir.Node, index: int, correction: np.ndarray, name: str) -> bool:
    """Put constant + correction where a node reads a constant of the correction's shape; say whether it does."""
    constant = node.inputs[index]
    tensor = None if constant is None else ir.convenience.get_const_tensor(constant)
    if tensor is None or tensor.shape.numpy() != correction.shape:
        return False
    values = tensor.numpy()
    # In float64, then rounded once to the dtype that was there.
    raised = (values.astype(np.float64) + correction).astype(values.dtype)
    node.replace_input_with(index, _initializer(model, name, raised))
    return True


def _add_after(model: ir.Model, node: ir.Node, correction: np.ndarray, name: str) -> None:
    output, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    dtype = output.dtype or (node.inputs[0].dtype if node.inputs[0] is not None else None) or ir.DataType.FLOAT
    shape = (-1, *[1] * (len(_kernel(node)) - 2)) if node.op_type == "Conv" else (-1,)
    constant = _initializer(model, name, correction.astype(dtype.numpy()).reshape(shape))
    result = ir.Value(name=output.name, type=output.type, shape=output.shape)
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    output.name = f"{name}.before"
    graph.insert_after(node, [ir.Node("", "Add", [output, constant], outputs=[result], name=name)])


def _kernel(node: ir.Node) -> tuple[int, ...]:
    kernel = node.inputs[1]
    tensor = ir.convenience.get_const_tensor(kernel) if kernel is not None else None
    if tensor is not None:
        return tuple(tensor.shape.numpy())
    assert kernel is not None and kernel.shape is not None
    return tuple(kernel.shape.numpy())


def _initializer(model: ir.Model, name: str, values: np.ndarray) -> ir.Value:
    free = free_name(name, model.graph.initializers)
    tensor = ir.tensor(values, name=free)
    value = ir.Value(name=free, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value
