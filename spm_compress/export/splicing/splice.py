"""Replacing products with fitted weights in a dense ONNX graph.

The rules:

1. A product x E^T (`checkpoint.products`) is recognised by the values of E (out, in), whatever way it is stored.
   If E is a fitted weight, its operator goes there; if E^T is, the transposed operator.
2. Only the product is replaced. The bias of a Gemm or Conv stays, as an Add; a layer's shift goes into the bias
   (`checkpoint.shifts`). A 1x1 Conv mixes its channels, so they are
   put last for it and back afterwards. A lowering that makes the matrix leaves the product as it is.
3. Everything else keeps its names; an initializer that nothing uses any more is dropped, from the inputs too.
4. One function a structure; one node a layer, named after it, with its numbers in the doc string. What stands around it
   is named after it, too.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass, ShapeInferencePass
from torch import Tensor

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.products import Product, inline_products, products, replace_matrix
from spm_compress.checkpoint.shifts import shift_output
from spm_compress.errors import ExportError
from spm_compress.export.lowering import DOMAIN, Lowering, number_arrays
from spm_compress.export.splicing.features_first import keep_features_first
from spm_compress.export.splicing.turns import LAST, Turns, is_turn
from spm_compress.operator.canonical import to_canonical, transpose
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure

__all__ = ["OPSET", "Spliced", "dense_model", "digest_of", "layer_model", "matches", "splice", "with_operator_matrices"]

# Range and negative axes of Flatten exist from this opset on, local functions from this IR version.
LEAST_OPSET, LEAST_IR_VERSION = 11, 8
# For models that are made here: read by ONNX Runtime since 1.17.
OPSET, IR_VERSION = 20, 9


@dataclass(frozen=True)
class Spliced:
    """What was done to a graph: layer -> names of its nodes, and the layers that were not found in it."""

    nodes: dict[str, list[str]]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class _Match:
    """A product whose matrix is that of a fitted layer, or its transpose."""

    product: Product
    layer: FittedLayer
    transposed: bool


def splice(model: ir.Model, layers: Sequence[FittedLayer], lowerings: Mapping[str, Lowering]) -> Spliced:
    """Replace in place every product with a fitted weight, under the rules above.

    lowerings: layer name -> how it is to run. Raises ExportError if the graph is too old, or holds none of the
    fitted weights.
    """
    opset = model.opset_imports.get("", 0)
    if opset < LEAST_OPSET:
        raise ExportError(
            f"the graph has opset {opset}, SPM stages need {LEAST_OPSET} or later; "
            "convert it with onnx.version_converter.convert_version"
        )
    unknown = _infer_shapes(model)
    writer = _Writer(model, opset)
    nodes: dict[str, list[str]] = {}
    for match in matches(model, layers):
        _shift(model, match)
        nodes.setdefault(match.layer.name, []).append(writer.replace(match, lowerings[match.layer.name]))
    if not nodes:
        raise ExportError(
            f"none of the {len(layers)} fitted weights is in the graph as a MatMul, Gemm or 1x1 Conv; "
            "is it the graph of the model that was fitted?"
        )
    keep_features_first(model)
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in unknown:  # what the graph did not say, it does not say afterwards
                value.shape = value.type = None
    for value in [value for value in model.graph.inputs if value.is_initializer() and not value.uses()]:
        model.graph.inputs.remove(value)  # a weight that is gone, listed as an input
    RemoveUnusedNodesPass()(model)
    RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    model.ir_version = max(model.ir_version, LEAST_IR_VERSION)
    return Spliced(nodes, tuple(layer.name for layer in layers if layer.name not in nodes))


def _infer_shapes(model: ir.Model) -> set[str | None]:
    """Find shapes and dtypes of inner values, where onnx can; return the names of those that had none.

    Many files have them of inputs and outputs only, while turns and dtypes are decided inside.
    """
    values = [value for node in model.graph.all_nodes() for value in node.outputs]
    unknown = {value.name for value in values if value.shape is None and not value.is_graph_output()}
    if unknown:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
    return unknown


def with_operator_matrices(model: ir.Model, layers: Sequence[FittedLayer]) -> None:
    """Put the torch operator's own matrix, computed in float64, in the place of every fitted weight.

    The graph stays dense: it says what a spliced one has to compute, without sharing a lowering with it.
    """
    for match in matches(model, layers):
        _shift(model, match)
        matrix, product = match.layer.spm.to(torch.float64).to_dense(), match.product
        e = (matrix.T if match.transposed else matrix).numpy()
        rank = len(product.tensor.shape)
        name = f"{match.layer.name}.operator.{int(product.stored_as_e)}{int(match.transposed)}{rank}"
        replace_matrix(model, product, e, name)
    RemoveUnusedNodesPass()(model)


def layer_model(layer: FittedLayer, lowering: Lowering) -> ir.Model:
    """Return a model of one fitted layer without its bias: x (rows, in) -> y (rows, out), float32."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape(["rows", layer.shape[1]]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": OPSET}, name=layer.name)
    model = ir.Model(graph, ir_version=IR_VERSION)
    nodes = _Writer(model, OPSET).layer(layer, layer.name, layer.spm, lowering, x, ir.DataType.FLOAT, graph)
    graph.extend(nodes)
    y = nodes[-1].outputs[0]
    y.name, y.type, y.shape = "y", float32, ir.Shape(["rows", layer.shape[0]])
    graph.outputs.append(y)
    return model


def dense_model(layer: FittedLayer) -> ir.Model:
    """Return what `layer_model` has to compute, as an ordinary MatMul with the torch operator's own matrix."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape(["rows", layer.shape[1]]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": OPSET}, name=layer.name)
    matrix = layer.spm.to(torch.float64).to_dense().T
    node = ir.Node("", "MatMul", [x, _initializer(graph, "weight", matrix, ir.DataType.FLOAT)])
    graph.append(node)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", float32, ir.Shape(["rows", layer.shape[0]])
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=IR_VERSION)


def matches(model: ir.Model, layers: Sequence[FittedLayer]) -> Iterator[_Match]:
    """Yield the products of a graph that are those of fitted layers; functions that hold one are inlined."""
    inline_products(model)
    by_digest = {layer.sha256: layer for layer in layers}
    shapes = {shape for layer in layers for shape in (layer.shape, layer.shape[::-1])}
    for product in products(model):
        if tuple(product.tensor.shape.numpy()[:2]) not in shapes:
            continue
        e = product.matrix().astype(np.float32)
        for transposed, matrix in ((False, e), (True, e.T)):
            layer = by_digest.get(digest_of(matrix))
            if layer is not None:
                yield _Match(product, layer, transposed)
                break


def digest_of(matrix: np.ndarray) -> str:
    """Return the SHA-256 of a float32 matrix in C order, as an artifact has it of every fitted weight."""
    return hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest()


def _shift(model: ir.Model, match: _Match) -> None:
    # A product with the transposed weight sees other inputs than those that the shift is the mean of.
    if match.layer.shift is not None and not match.transposed:
        shift_output(model, match.product, match.layer.shift.double().numpy(), f"{match.layer.name}.spm.shift")


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
    """Adds functions, initializers and nodes to one model, each function and array once."""

    def __init__(self, model: ir.Model, opset: int) -> None:
        self.model = model
        self.opset = opset
        self.functions: dict[tuple[Structure, Lowering, ir.DataType], str] = {}
        self.turns: dict[ir.Graph, Turns] = {}
        self.matrices: dict[object, tuple[str, ir.Value]] = {}
        self.taken = {node.name for node in model.graph.all_nodes()}

    def replace(self, match: _Match, lowering: Lowering) -> str:
        """Put the operator where the product was, or before it; return the new node's name."""
        if lowering.layout is None:
            return self._make_matrix(match, lowering)
        old, layer = match.product.node, match.layer
        x, dense, graph = old.inputs[0], old.outputs[0], old.graph
        assert x is not None and isinstance(graph, ir.Graph)
        spm, suffix = (_transposed(layer.spm), ".transposed") if match.transposed else (layer.spm, "")
        dtype = dense.dtype or x.dtype or ir.DataType.FLOAT
        new: list[ir.Node] = []
        rank = len(match.product.tensor.shape)
        if old.op_type == "Conv":
            new.append(ir.Node("", "Transpose", [x], [ir.AttrInt64s("perm", [0, *range(2, rank), 1])]))
            x = new[-1].outputs[0]
        new += self.layer(layer, layer.name + suffix, spm, lowering, x, dtype, graph)
        call = next(node for node in new if node.op_type in self.functions.values())
        bias = old.inputs[2] if len(old.inputs) > 2 else None
        if bias is not None:
            new.append(ir.Node("", "Add", [new[-1].outputs[0], bias], name=f"{call.name}.bias"))
        if old.op_type == "Conv":
            perm = ir.AttrInt64s("perm", [0, rank - 1, *range(1, rank - 1)])
            new.append(ir.Node("", "Transpose", [new[-1].outputs[0]], [perm]))
        elif dense.shape is not None:
            for node in new:  # what the axis of the features is decided by
                if node.op_type == "Add" or is_turn(node, LAST):
                    node.outputs[0].shape, node.outputs[0].type = dense.shape, dense.type
        result = new[-1].outputs[0]
        _name_around(call, new)
        result.name, result.type, result.shape = dense.name, dense.type, dense.shape
        ir.convenience.replace_nodes_and_values(graph, old, [old], new, [dense], [result])
        assert call.name is not None
        return call.name

    def _make_matrix(self, match: _Match, lowering: Lowering) -> str:
        """Multiply with a made matrix instead of the stored one; products that share a weight share what is made."""
        product, layer = match.product, match.layer
        dtype = ir.DataType.from_numpy(product.matrix().dtype)
        sizes = tuple(product.tensor.shape.numpy()[2:])  # ones, of a convolution's kernel
        is_turned = product.stored_as_e == match.transposed
        key = (layer.name, dtype, is_turned, sizes)
        if key not in self.matrices:
            name = self._free_name(layer.name)
            new = [self._call(layer, layer.name, layer.spm, lowering, [], dtype, name)]
            if is_turned:
                new.append(ir.Node("", "Transpose", [new[-1].outputs[0]], [ir.AttrInt64s("perm", [1, 0])]))
            if sizes:
                shape = ir.tensor([*(layer.shape[::-1] if is_turned else layer.shape), *sizes])
                constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", shape)])
                new += [constant, ir.Node("", "Reshape", [new[-1].outputs[0], constant.outputs[0]])]
            for i, node in enumerate(new):
                node.outputs[0].name = f"{name}.matrix.{i}"
            # In the main graph, before all else: bodies of loops and branches see it too.
            self.model.graph.insert_before(self.model.graph[0], new)
            self.matrices[key] = name, new[-1].outputs[0]
        name, matrix = self.matrices[key]
        product.node.replace_input_with(1, matrix)
        return name

    def layer(
        self,
        layer: FittedLayer,
        name: str,
        spm: SPM,
        lowering: Lowering,
        x: ir.Value,
        dtype: ir.DataType,
        graph: ir.Graph,
    ) -> list[ir.Node]:
        """Return the call of the operator's function on x, named after the layer, between the turns that it needs.

        name, spm: of the layer, or of its transposed operator. The nodes are not in a graph yet. A lowering that makes
        the matrix gets the product with it.
        """
        free = self._free_name(name)
        if lowering.layout is None:
            call = self._call(layer, name, spm, lowering, [], dtype, free)
            turned = ir.Node("", "Transpose", [call.outputs[0]], [ir.AttrInt64s("perm", [1, 0])])
            return [call, turned, ir.Node("", "MatMul", [x, turned.outputs[0]])]
        turns = self.turns.setdefault(graph, Turns(self.model, self.opset))
        before = turns.into(lowering.layout, x)
        call = self._call(layer, name, spm, lowering, [before[-1].outputs[0] if before else x], dtype, free)
        return [*before, call, *turns.back(lowering.layout, call.outputs[0], x, spm.shape[0])]

    def _call(
        self,
        layer: FittedLayer,
        name: str,
        spm: SPM,
        lowering: Lowering,
        x: list[ir.Value],
        dtype: ir.DataType,
        free: str,
    ) -> ir.Node:
        arrays = [
            _initializer(self.model.graph, f"{name}.spm.{array}", values)
            for array, values in number_arrays(spm).items()
        ]
        function = self._function(spm, lowering, dtype)
        return ir.Node(DOMAIN, function, [*x, *arrays], name=free, doc_string=_describe(layer, spm, lowering))

    def _free_name(self, name: str) -> str:
        plain = name.removesuffix(".weight")
        free = next(n for n in (plain, *(f"{plain}.{i}" for i in range(2, len(self.taken) + 3))) if n not in self.taken)
        self.taken.add(free)
        return free

    def _function(self, spm: SPM, lowering: Lowering, dtype: ir.DataType) -> str:
        key = (spm.structure, lowering, dtype)
        if key not in self.functions:
            out, into = spm.shape
            plain = f"SPM_{out}x{into}_{spm.structure.stages}stages_{lowering.name.split()[0]}"
            taken = set(self.functions.values())
            name = next(n for n in (plain, *(f"{plain}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
            function = lowering.function(spm.structure, dtype, self.opset, name)
            self.model.functions[function.identifier()] = function
            self.model.graph.opset_imports[DOMAIN] = 1
            self.functions[key] = name
        return self.functions[key]


def _name_around(call: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Name what stands around a layer's call after it: values NAME.spm.x into it and NAME.spm.y out of it."""
    at = nodes.index(call)
    for i, node in enumerate(nodes):
        if node.name is None:
            step = re.sub("(?<=[a-z])(?=[A-Z])", "_", node.op_type).lower()
            node.name = f"{call.name}.{step}" + (".before" if node.op_type == "Transpose" and i < at else "")
        if i < len(nodes) - 1:
            node.outputs[0].name = f"{call.name}.spm." + {at - 1: "x", at: "y"}.get(i, str(i))


def _describe(layer: FittedLayer, spm: SPM, lowering: Lowering) -> str:
    (out, into), structure = spm.shape, spm.structure
    groups = sum(len(chain.groups) for chain in structure.chains)
    lines = [f"{layer.name}: {out}x{into}, run as {lowering.name}"]
    if groups:
        lines.append(f"{structure.stages} pairwise mixing stages in {groups} groups ({structure.mixer.value})")
    if structure.rank:
        lines.append(f"a low-rank companion of rank {structure.rank}")
    count = spm.parameter_count
    lines.append(f"{count:,} numbers instead of {out * into:,} ({count / (out * into):.1%})")
    lines.append(f"relative error of the weight {layer.error:.3f}, of an SVD of equal size {layer.svd_error:.3f}")
    if layer.output_error is not None and layer.svd_output_error is not None:
        lines.append(f"of the outputs {layer.output_error:.3f}, of an SVD {layer.svd_output_error:.3f}")
    return "\n".join(lines)
