"""The dense graph with the fitted weights in it: what an export has to compute.

It shares neither a lowering nor the finder of products with the export, so that a use which that one overlooks shows:

1. All local functions are inlined.
2. Every tensor that is stored anywhere in the graph, and every one that a DequantizeLinear makes of constants, is
   looked at. If its values are those of a fitted weight, either way around, the operator's own matrix takes their
   place, for everything that reads them.
3. The correction of a layer is added by an Add of its own behind every product that reads the matrix as it is applied.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.free_names import free_name
from spm_compress.compress.job import digest
from spm_compress.errors import ExportError, first_line

__all__ = ["correct_products", "inline", "stored_matrices", "with_operator_matrices"]


def with_operator_matrices(model: ir.Model, layers: Sequence[FittedLayer]) -> None:
    """Put the torch operator's matrix, computed in float64, in the place of every fitted weight, under the rules above.

    The graph stays dense.
    """
    inline(model)
    by_values = {(layer.sha256, layer.shape): layer for layer in layers}
    sizes = {shape for layer in layers for shape in (layer.shape, layer.shape[::-1])}
    for value, array in list(stored_matrices(model)):
        flat = array.reshape(array.shape[:2]) if array.shape[2:] == (1,) * (array.ndim - 2) else array
        if flat.shape not in sizes:
            continue
        for is_transposed, matrix in ((False, flat), (True, flat.T)):
            values = digest(torch.from_numpy(np.ascontiguousarray(matrix.astype(np.float32))))
            layer = by_values.get((values, matrix.shape))
            if layer is not None:
                made = functools.partial(_matrix, layer, is_transposed, array.shape, array.dtype)
                dtype, name = ir.DataType.from_numpy(array.dtype), f"{layer.name}.operator"
                # Made when it is written: all of them together would take the memory of the model once more.
                lazy = ir.LazyTensor(made, dtype=dtype, shape=ir.Shape(array.shape), name=name, cache=False)
                new = _initializer(model, name, lazy)
                ir.convenience.replace_all_uses_with(value, new)
                if layer.bias_correction is not None:
                    correct_products(model, new, is_transposed, layer.name, layer.bias_correction.double().numpy())
                break


def _matrix(layer: FittedLayer, is_transposed: bool, shape: tuple[int, ...], dtype: Any) -> Any:
    made = layer.operator.to(torch.float64).to_dense().numpy()
    return ir.Tensor(np.ascontiguousarray((made.T if is_transposed else made).reshape(shape).astype(dtype)))


def inline(model: ir.Model) -> None:
    """Inline all local functions. Raises ExportError where they cannot be."""
    try:
        InlinePass()(model)
    except Exception as error:  # onnx_ir raises many types: cycles, opsets that differ, graphs as parameters
        cause = error.__cause__ or error
        raise ExportError(
            f"the graph's local functions cannot be inlined ({first_line(cause)}); inline them with onnx.inliner first"
        ) from error


def stored_matrices(model: ir.Model) -> Iterator[tuple[ir.Value, np.ndarray]]:
    """Yield every tensor of two axes or more that a graph stores, or dequantizes from constants."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if _is_matrix(value.const_value):
                assert value.const_value is not None
                yield value, value.const_value.numpy()
    for node in model.graph.all_nodes():
        if node.op_type == "Constant" and "value" in node.attributes:
            tensor = node.attributes["value"].as_tensor()
            if _is_matrix(tensor):
                yield node.outputs[0], tensor.numpy()
        elif node.op_type == "DequantizeLinear":
            inputs = [None if value is None else ir.convenience.get_const_tensor(value) for value in node.inputs]
            if all(tensor is not None for tensor in inputs) and len(inputs[0].shape) >= 2:  # type: ignore[union-attr]
                yield node.outputs[0], _dequantized(node, [tensor.numpy() for tensor in inputs if tensor is not None])


def _is_matrix(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype.is_floating_point() and len(tensor.shape) >= 2


def _dequantized(node: ir.Node, inputs: Sequence[np.ndarray]) -> np.ndarray:
    names = [f"input.{i}" for i in range(len(inputs))]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    alone = onnx.helper.make_node("DequantizeLinear", names, ["output"], **attributes)
    (found,) = ReferenceEvaluator(alone).run(None, dict(zip(names, inputs, strict=True)))
    return np.asarray(found)


def _initializer(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    free = _free_name(model, name)
    tensor.name = free
    shape = ir.Shape(tensor.shape.numpy())
    value = ir.Value(name=free, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.register_initializer(value)
    return value


def _free_name(model: ir.Model, name: str) -> str:
    taken = {each for graph in model.graphs() for each in graph.initializers}
    taken |= {value.name for value in model.graph.inputs if value.name}
    taken |= {value.name for node in model.graph.all_nodes() for value in node.outputs if value.name}
    return free_name(name, taken)


def correct_products(
    model: ir.Model, matrix: ir.Value, is_transposed: bool, name: str, correction: np.ndarray
) -> list[ir.Value]:
    """Add a correction (out,) behind every plain x S^T, where `matrix` is S, or its transpose; return what holds it."""
    added = []
    for node, index in list(matrix.uses()):
        options = {name: attribute.value for name, attribute in node.attributes.items()}
        if node.op_type in ("Identity", "Cast", "Transpose"):
            transposes = node.op_type == "Transpose" and options.get("perm", [1, 0])[0] == 1
            added += correct_products(model, node.outputs[0], is_transposed != transposes, name, correction)
        elif index == 1 and node.op_type in ("MatMul", "Gemm", "Conv"):
            takes_s = node.op_type == "Conv" or bool(options.get("transB", 0))
            if takes_s != is_transposed and _is_plain(options):
                added.append(_add_behind(model, node, name, correction))
    return added


def _is_plain(options: dict[str, object]) -> bool:
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    moved = any(stride != 1 for stride in list(options.get("strides") or ())) or any(list(options.get("pads") or ()))  # type: ignore[call-overload]
    return not moved and all(options.get(name, value) == value for name, value in usual.items())


def _add_behind(model: ir.Model, node: ir.Node, layer: str, correction: np.ndarray) -> ir.Value:
    assert isinstance(node.graph, ir.Graph)
    output = node.outputs[0]
    dtype = (output.dtype or ir.DataType.FLOAT).numpy()
    kernel = node.inputs[1]
    rank = len(kernel.shape) if node.op_type == "Conv" and kernel is not None and kernel.shape is not None else 2
    shaped = correction.reshape(-1, *[1] * (rank - 2)).astype(dtype)
    held = _initializer(model, f"{layer}.operator.bias_correction", ir.tensor(shaped))
    add = ir.Node("", "Add", [output, held])
    result = add.outputs[0]
    result.type, result.shape = output.type, output.shape
    name = output.name
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    add.replace_input_with(0, output)
    result.name, output.name = name, _free_name(model, f"{layer}.operator.{name}")
    node.graph.insert_after(node, [add])
    return held
