"""Products are found by the values of their weights, in any orientation, and only they are replaced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from draw import laid_out, random_operator
from made import fitted_layer
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from spm_compress import FitSettings, fit_matrices
from spm_compress.checkpoint import FittedLayer
from spm_compress.compress.job import digest
from spm_compress.errors import ExportError
from spm_compress.export.splicing.splice import splice
from spm_compress.forms.lowering import Dense, Lowering, Stages, lowerings
from spm_compress.forms.spm import Gauge, Mixer

WEIGHT = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))  # (out, in)


@pytest.fixture(scope="module")
def layer() -> FittedLayer:
    return fitted(WEIGHT)


def fitted(weight: Tensor) -> FittedLayer:
    (result,) = fit_matrices(weight[None], FitSettings(steps=20, block=8))
    return fitted_layer(result.operator, "w.weight", digest(weight), result.error)


def graph(
    node: onnx.NodeProto, stored: Tensor, shape: list[object], extra: dict[str, np.ndarray] | None = None
) -> ir.Model:
    initializers = {"val_92": stored.contiguous().numpy(), **(extra or {})}
    made = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Identity", ["x"], ["h"], name="before"),
                node,
                helper.make_node("Relu", ["y"], ["z"], name="after"),
            ],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("z", TensorProto.FLOAT, [*shape[:-1], "out"])],
            [numpy_helper.from_array(array, name) for name, array in initializers.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    return ir.from_proto(made)


def outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


BIAS = np.linspace(-1, 1, 24).astype(np.float32)
CASES = {
    "MatMul": (helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T, ["n", 40], {}, WEIGHT),
    "MatMul 3-D": (helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T, ["b", "s", 40], {}, WEIGHT),
    "Gemm": (helper.make_node("Gemm", ["h", "val_92"], ["y"]), WEIGHT.T, ["n", 40], {}, WEIGHT),
    "Gemm transB": (helper.make_node("Gemm", ["h", "val_92"], ["y"], transB=1), WEIGHT, ["n", 40], {}, WEIGHT),
    "Gemm bias": (
        helper.make_node("Gemm", ["h", "val_92", "c"], ["y"], transB=1),
        WEIGHT,
        ["n", 40],
        {"c": BIAS},
        WEIGHT,
    ),
    # the graph multiplies by the fitted weight itself (GPT-2's Conv1D): the transposed operator
    "other orientation": (helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT, ["n", 24], {}, WEIGHT.T),
}


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("case", CASES)
def test_a_product_is_replaced_whatever_way_it_is_written(case: str, lowering: Lowering, layer: FittedLayer) -> None:
    node, stored, shape, extra, effective = CASES[case]
    model = graph(node, stored, shape, extra)
    spliced = splice(model, [layer], {layer.name: lowering})
    assert list(spliced.nodes) == ["w.weight"]
    assert spliced.missing == ()
    assert "val_92" not in model.graph.initializers
    assert {"before", "after"} <= {each.name for each in model.graph}
    assert any(each.op_type in ("MatMul", "Gemm") for each in model.graph) == (lowering == Dense())
    dense = layer.operator.to(torch.float64).to_dense()
    matrix = (dense if effective is WEIGHT else dense.T).numpy()
    for batch in (1, 7):
        lead = [batch] if len(shape) == 2 else [batch, 3]
        x = np.random.default_rng(batch).standard_normal([*lead, matrix.shape[1]]).astype(np.float32)
        expected = np.maximum(x @ matrix.T + (BIAS if extra else 0), 0)
        assert np.linalg.norm(outputs(model, x) - expected) < 1e-5 * np.linalg.norm(expected)


KINDS = {
    "MatMul": (helper.make_node("MatMul", ["h", "val_92"], ["y"]), ["n"], False),
    "MatMul 3-D": (helper.make_node("MatMul", ["h", "val_92"], ["y"]), ["n", 3], False),
    "Gemm transB bias": (helper.make_node("Gemm", ["h", "val_92", "c"], ["y"], transB=1), ["n"], True),
}


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 96), (37, 33), (40, 24)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_shape_runs_at_every_batch(kind: str, shape: tuple[int, int], lowering: Lowering) -> None:
    node, lead, is_gemm = KINDS[kind]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    form = laid_out(shape[1], shape[0], Mixer.GENERAL, Gauge.CANONICAL, stages=6, block=8)
    operator = random_operator(form, dtype=torch.float32)
    layer = fitted_layer(operator, "w.weight", digest(weight))
    bias = np.linspace(-1, 1, shape[0]).astype(np.float32)
    stored = weight if is_gemm else weight.T
    model = graph(node, stored, [*lead, shape[1]], {"c": bias} if is_gemm else {})
    splice(model, [layer], {layer.name: lowering})
    matrix = operator.to(torch.float64).to_dense().numpy()
    for batch in (1, 7, 512):
        x = np.random.default_rng(batch).standard_normal([batch, *lead[1:], shape[1]]).astype(np.float32)
        expected = np.maximum(x.astype(np.float64) @ matrix.T + (bias if is_gemm else 0), 0)
        assert np.linalg.norm(outputs(model, x) - expected) < 1e-5 * np.linalg.norm(expected)


def test_a_weight_used_twice_is_replaced_twice_and_stored_once(layer: FittedLayer) -> None:
    model = graph(helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T, ["n", 40])
    (product,) = [node for node in model.graph if node.op_type == "MatMul"]
    second = ir.Node("", "MatMul", list(product.inputs), name="again")
    model.graph.insert_after(product, second)
    second.outputs[0].name = "y2"
    second.outputs[0].type = product.outputs[0].type
    model.graph.outputs.append(second.outputs[0])
    model.graph.outputs[-1].type = ir.TensorType(ir.DataType.FLOAT)
    assert splice(model, [layer], {layer.name: Stages()}).nodes == {"w.weight": ["w", "w.2"]}
    assert len(model.graph.initializers) == len(layer.form.shapes)


def test_products_that_share_a_weight_share_the_matrix_that_is_made(layer: FittedLayer) -> None:
    model = graph(helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T, ["n", 40])
    (product,) = [node for node in model.graph if node.op_type == "MatMul"]
    second = ir.Node("", "MatMul", list(product.inputs), name="again")
    model.graph.insert_after(product, second)
    second.outputs[0].name, second.outputs[0].type = "y2", product.outputs[0].type
    model.graph.outputs.append(second.outputs[0])
    splice(model, [layer], {layer.name: Dense()})
    made = [node.op_type for node in model.graph if node.op_type.endswith("_dense")]
    assert made == ["SPM_24x40_10stages_dense"]
    x = np.random.default_rng(0).standard_normal([5, 40]).astype(np.float32)
    session = onnxruntime.InferenceSession(
        ir.serde.serialize_model(model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    z, y2 = session.run(["z", "y2"], {"x": x})
    np.testing.assert_array_equal(z, np.maximum(y2, 0))


def test_products_that_are_something_else_stay(layer: FittedLayer) -> None:
    for node, stored in (
        (helper.make_node("Add", ["h", "val_92"], ["y"]), WEIGHT.T),
        (helper.make_node("MatMul", ["h", "val_92"], ["y"]), WEIGHT.T * 1.0001),
    ):
        with pytest.raises(ExportError, match="none of the 1 fitted weights is in the graph"):
            splice(graph(node, stored, ["n", 40]), [layer], {layer.name: Stages()})


def test_a_layer_that_the_graph_does_not_use_is_named(layer: FittedLayer) -> None:
    other = fitted(WEIGHT + 1)
    other = replace(other, names=("other.weight",))
    model = graph(*[CASES["MatMul"][i] for i in (0, 1, 2)])
    assert splice(model, [layer, other], dict.fromkeys((layer.name, other.name), Stages())).missing == ("other.weight",)


def test_an_opset_before_11_is_refused(layer: FittedLayer) -> None:
    model = graph(*[CASES["MatMul"][i] for i in (0, 1, 2)])
    model.graph.opset_imports[""] = 10
    with pytest.raises(ExportError, match="opset 10"):
        splice(model, [layer], {layer.name: Stages()})
