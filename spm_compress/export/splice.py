"""Replacing dense products in an ONNX graph by SPM functions.

Rules:
1. A weight is found by its values, not its name: exporters rename weights (`val_92`).
2. A MatMul or Gemm computes x E^T for one matrix E (out, in), whatever way it is stored.
   If E is a fitted weight, its operator goes there; if E^T is, the transposed operator.
3. Only the product is replaced. A Gemm's bias stays, as an Add.
4. Everything else keeps its names; an initializer that nothing uses any more is dropped.
5. One function a structure; one node a layer, named after it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import Tensor

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.errors import ExportError
from spm_compress.export.lowering import DOMAIN, Lowering, number_arrays
from spm_compress.operator.canonical import to_canonical, transpose
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure

__all__ = ["OPSET", "Spliced", "layer_model", "splice", "with_operator_matrices"]

# Range, Mod, ReduceSum with axes as input, and local functions all exist from here on.
LEAST_OPSET, LEAST_IR_VERSION = 13, 8
# For models that are made here: read by ONNX Runtime since 1.17.
OPSET, IR_VERSION = 20, 9


@dataclass(frozen=True)
class Spliced:
    """What was done to a graph: layer -> names of its nodes, and the layers that were not found in it."""

    nodes: dict[str, list[str]]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Product:
    """A MatMul or Gemm x E^T with E a fitted weight, or its transpose.

    stored_as_e: whether the graph holds E itself (Gemm with transB) rather than E^T.
    """

    node: ir.Node
    layer: FittedLayer
    transposed: bool
    stored_as_e: bool


def splice(model: ir.Model, layers: Sequence[FittedLayer], lowering: Lowering) -> Spliced:
    """Replace in place every product with a fitted weight, under the rules above.

    Raises ExportError if the graph is too old, or holds none of the fitted weights.
    """
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise ExportError(
            f"the graph has opset {opset}, SPM stages need {LEAST_OPSET} or later; "
            "convert it with onnx.version_converter.convert_version"
        )
    writer = _Writer(model, lowering, opset)
    nodes: dict[str, list[str]] = {}
    for product in _products(model, layers):
        nodes.setdefault(product.layer.name, []).append(writer.replace(product))
    if not nodes:
        raise ExportError(
            f"none of the {len(layers)} fitted weights is in the graph as a MatMul or Gemm; "
            "is it the graph of the model that was fitted?"
        )
    RemoveUnusedNodesPass()(model)
    model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    return Spliced(nodes, tuple(layer.name for layer in layers if layer.name not in nodes))


def with_operator_matrices(model: ir.Model, layers: Sequence[FittedLayer]) -> None:
    """Put the torch operator's own matrix, computed in float64, in the place of every fitted weight.

    The graph stays dense: it says what a spliced one has to compute, without sharing a lowering with it.
    """
    for product in _products(model, layers):
        matrix = product.layer.spm.to(torch.float64).to_dense()
        stored = matrix if product.stored_as_e != product.transposed else matrix.T
        weight = product.node.inputs[1]
        assert weight is not None and weight.dtype is not None
        name = f"{product.layer.name}.operator.{int(product.stored_as_e)}{int(product.transposed)}"
        product.node.replace_input_with(1, _initializer(model.graph, name, stored.contiguous(), weight.dtype))
    RemoveUnusedNodesPass()(model)


def layer_model(layer: FittedLayer, lowering: Lowering) -> ir.Model:
    """Return a model of one fitted layer without its bias: x (rows, in) -> y (rows, out), float32."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape(["rows", layer.shape[1]]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": OPSET}, name=layer.name)
    model = ir.Model(graph, ir_version=IR_VERSION)
    node = _Writer(model, lowering, OPSET).node(layer.name, layer.spm, x, ir.DataType.FLOAT)
    graph.append(node)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", float32, ir.Shape(["rows", layer.shape[0]])
    graph.outputs.append(y)
    return model


def _products(model: ir.Model, layers: Sequence[FittedLayer]) -> Iterator[_Product]:
    by_digest = {layer.sha256: layer for layer in layers}
    shapes = {shape for layer in layers for shape in (layer.shape, layer.shape[::-1])}
    for node in list(model.graph):
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm") or len(node.inputs) < 2:
            continue
        weight = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
        if weight is None or tuple(weight.shape.numpy()) not in shapes or not weight.dtype.is_floating_point():
            continue
        options = {name: attribute.value for name, attribute in node.attributes.items()}
        if options.get("transA", 0) or options.get("alpha", 1.0) != 1.0 or options.get("beta", 1.0) != 1.0:
            continue
        stored_as_e = bool(options.get("transB", 0))
        stored = weight.numpy().astype(np.float32)
        e = stored if stored_as_e else stored.T
        for transposed, matrix in ((False, e), (True, e.T)):
            layer = by_digest.get(hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest())
            if layer is not None:
                yield _Product(node, layer, transposed, stored_as_e)
                break


def _transposed(spm: SPM) -> SPM:
    turned = transpose(spm)
    return to_canonical(turned) if turned.structure.mixer is Mixer.GENERAL else turned


def _initializer(graph: ir.Graph, name: str, values: Tensor, dtype: ir.DataType | None = None) -> ir.Value:
    """Return the initializer of that name, made of the values (index tables as int32) if there is none."""
    if name not in graph.initializers:
        array = (values.to(torch.int32) if values.dtype == torch.int64 else values).contiguous().numpy()
        tensor = ir.tensor(array if dtype is None else array.astype(dtype.numpy()), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]


class _Writer:
    """Adds functions, initializers and nodes to one graph, each function and array once."""

    def __init__(self, model: ir.Model, lowering: Lowering, opset: int) -> None:
        self.model = model
        self.lowering = lowering
        self.opset = opset
        self.functions: dict[tuple[Structure, ir.DataType], str] = {}
        self.taken = {node.name for node in model.graph}

    def replace(self, product: _Product) -> str:
        """Put the operator where the product was; return the new node's name."""
        old, layer = product.node, product.layer
        x, dense = old.inputs[0], old.outputs[0]
        assert x is not None
        spm, suffix = (_transposed(layer.spm), ".transposed") if product.transposed else (layer.spm, "")
        node = self.node(layer.name + suffix, spm, x, dense.dtype or x.dtype or ir.DataType.FLOAT)
        new, result = [node], node.outputs[0]
        bias = old.inputs[2] if len(old.inputs) > 2 else None
        if bias is not None:
            result.name = f"{node.name}.product"
            new.append(ir.Node("", "Add", [result, bias], name=f"{node.name}.bias"))
            result = new[-1].outputs[0]
        result.name, result.type, result.shape = dense.name, dense.type, dense.shape
        ir.convenience.replace_nodes_and_values(self.model.graph, old, [old], new, [dense], [result])
        assert node.name is not None
        return node.name

    def node(self, name: str, spm: SPM, x: ir.Value, dtype: ir.DataType) -> ir.Node:
        """Return a call of the operator's function on x, named after the layer; it is not in the graph yet."""
        graph = self.model.graph
        arrays = [_initializer(graph, f"{name}.spm.{array}", values) for array, values in number_arrays(spm).items()]
        plain = name.removesuffix(".weight")
        free = next(n for n in (plain, *(f"{plain}.{i}" for i in range(2, len(self.taken) + 3))) if n not in self.taken)
        self.taken.add(free)
        return ir.Node(DOMAIN, self._function(spm, dtype), [x, *arrays], name=free, doc_string=_describe(name, spm))

    def _function(self, spm: SPM, dtype: ir.DataType) -> str:
        key = (spm.structure, dtype)
        if key not in self.functions:
            out, into = spm.shape
            plain = f"SPM_{out}x{into}_{spm.structure.stages}stages"
            taken = set(self.functions.values())
            name = next(n for n in (plain, *(f"{plain}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
            function = self.lowering.function(spm.structure, dtype, self.opset, name)
            self.model.functions[function.identifier()] = function
            self.model.graph.opset_imports[DOMAIN] = 1
            self.functions[key] = name
        return self.functions[key]


def _describe(name: str, spm: SPM) -> str:
    out, into = spm.shape
    return (
        f"{name}: {out}x{into} as {spm.structure.stages} pairwise mixing stages ({spm.structure.mixer.value}), "
        f"{spm.parameter_count} numbers instead of {out * into}"
    )
