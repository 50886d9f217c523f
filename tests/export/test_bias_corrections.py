"""What calibration adds to a layer's outputs reaches the graph, in the bias where there is one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import helper
from test_splice import WEIGHT, fitted, graph, outputs

from spm_compress.export.reference import with_operator_matrices
from spm_compress.export.splicing.splice import splice
from spm_compress.forms.lowering import Dense, Lowering, Stages

CORRECTION = torch.linspace(-3, 5, 24)
BIAS = np.linspace(2, 1, 24, dtype=np.float32)
X = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
IMAGE = np.random.default_rng(0).standard_normal((2, 40, 3, 3)).astype(np.float32)


def models() -> dict[str, tuple[ir.Model, np.ndarray | float]]:
    """Graph and the bias that it has without the correction."""
    conv = graph(helper.make_node("Conv", ["h", "val_92"], ["y"]), WEIGHT[:, :, None, None], ["n", "c", "a", "b"])
    gemm = helper.make_node("Gemm", ["h", "val_92", "b"], ["y"], transB=1)
    matmul = graph(helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T, ["rows", 40])
    added = graph(helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T, ["rows", 40], {"b": BIAS})
    relu = next(node for node in added.graph if node.op_type == "Relu")
    add = ir.Node("", "Add", [added.graph.initializers["b"], relu.inputs[0]], name="bias")
    add.outputs[0].name = "biased"
    added.graph.insert_before(relu, [add])
    relu.replace_input_with(0, add.outputs[0])
    return {
        "Conv": (conv, 0.0),
        "Gemm": (graph(gemm, WEIGHT, ["rows", 40], {"b": BIAS}), BIAS),
        "MatMul": (matmul, 0.0),
        "MatMul and Add": (added, BIAS),
    }


@pytest.mark.parametrize("lowering", [Dense(), Stages()], ids=["dense", "stages"])
@pytest.mark.parametrize("kind", list(models()))
def test_a_bias_correction_is_added_to_the_outputs_of_a_layer(kind: str, lowering: Lowering) -> None:
    model, bias = models()[kind]
    before = [node.op_type for node in model.graph]
    layer = replace(fitted(WEIGHT), bias_correction=CORRECTION)
    matrix = layer.operator.to_dense().double().numpy()
    reference = model.clone()
    with_operator_matrices(reference, [layer])
    splice(model, [layer], {layer.name: lowering})
    raised = bias + CORRECTION.numpy().astype(np.float64)
    if kind == "Conv":
        x, expected = IMAGE, np.einsum("oi,nihw->nohw", matrix, IMAGE) + raised[:, None, None]
    else:
        x, expected = X, X @ matrix.T + raised
    for made in (model, reference):
        np.testing.assert_allclose(outputs(made, x), np.maximum(expected, 0), rtol=1e-5, atol=1e-5)
    if isinstance(lowering, Dense):
        # A bias that is there takes the correction in: no addition more at run time.
        has_bias = isinstance(bias, np.ndarray)
        assert [node.op_type for node in model.graph].count("Add") == before.count("Add") + (not has_bias)
