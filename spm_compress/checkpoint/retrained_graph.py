"""What a training changed of an ONNX model's tensors, put back into its graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.products import Product, inline_products, products, stored_tensor

__all__ = ["put_back"]


def put_back(model: ir.Model, changed: Mapping[str, Tensor]) -> None:
    """Give tensors of the main graph other values, in place, each in the dtype and the layout that it has there.

    changed: by their names in the source; matrices as (out_features, in_features). A matrix that was stored as integers
    becomes one of floating point.
    """
    if not changed:
        return
    inline_products(model)
    matrices: dict[str, Product] = {}
    for product in products(model):
        matrices.setdefault(product.root.name or "", product)
    constants = (node.outputs[0] for node in model.graph if node.op_type == "Constant")
    values = {value.name: value for value in (*constants, *model.graph.initializers.values())}
    for name, tensor in changed.items():
        value, array = values[name], tensor.numpy()
        if name in matrices:
            value, array = _as_held(matrices[name], array)
        stored = stored_tensor(value)
        node = value.producer()
        if stored is None:  # what DequantizeLinear makes
            _replace(model, value, array, name)
        elif node is None:
            value.const_value = _like(stored, array)
        else:
            node.attributes["value"] = ir.AttrTensor("value", _like(stored, array))


def _as_held(product: Product, e: np.ndarray) -> tuple[ir.Value, np.ndarray]:
    """Return the first value of floating point that holds a product's matrix, and E (out, in) as it holds that."""
    held, is_turned = product.held
    array = e.T if is_turned else e
    return held, array.reshape(*array.shape, *[1] * (len(product.tensor.shape) - 2))


def _like(stored: ir.TensorProtocol, array: np.ndarray) -> ir.TensorProtocol:
    return ir.Tensor(np.ascontiguousarray(array.astype(stored.dtype.numpy())), dtype=stored.dtype, name=stored.name)


def _replace(model: ir.Model, value: ir.Value, array: np.ndarray, name: str) -> None:
    dtype = value.dtype or ir.DataType.FLOAT
    free = free_name(f"{name}.retrained", model.graph.initializers)
    tensor = ir.Tensor(np.ascontiguousarray(array.astype(dtype.numpy())), dtype=dtype, name=free)
    made = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(made)
    ir.convenience.replace_all_uses_with(value, made)
    RemoveUnusedNodesPass()(model)
