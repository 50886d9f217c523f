"""One fitted layer as an ONNX model of its own."""

from __future__ import annotations

import onnx_ir as ir
import torch

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.export.splicing.writer import NBITS_OPSET, Placed, Writer, initializer
from spm_compress.forms.lowering import Lowering, NBits

__all__ = ["OPSET", "dense_model", "layer_model"]

# For models that are made here: read by ONNX Runtime since 1.17.
OPSET, IR_VERSION = 20, 9


def layer_model(layer: FittedLayer, lowering: Lowering) -> ir.Model:
    """Return a model of one fitted layer without its bias: x (rows, in) -> y (rows, out), float32."""
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape(["rows", layer.shape[1]]))
    opset = NBITS_OPSET if isinstance(lowering, NBits) else OPSET
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": opset}, name=layer.name)
    model = ir.Model(graph, ir_version=IR_VERSION)
    nodes = Writer(model, opset).layer(Placed.of(layer, lowering), x, ir.DataType.FLOAT, graph)
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
    matrix = layer.operator.to(torch.float64).to_dense().T
    node = ir.Node("", "MatMul", [x, initializer(graph, "weight", matrix, ir.DataType.FLOAT)])
    graph.append(node)
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", float32, ir.Shape(["rows", layer.shape[0]])
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=IR_VERSION)
