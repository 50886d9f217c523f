"""Inputs that a model can take: masks, sums of axes, what is known; and what NaN on both sides means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from spm_compress.errors import VerificationError
from spm_compress.export.trials import Known, Trial, find_trial
from spm_compress.export.verification import Agreement, agreement, compare, require, session


def masked(path: Path, *, all_ones_fail: bool) -> ir.Model:
    """Write y = x / (number of those that are not masked): NaN where everything is masked out."""
    count = "left" if all_ones_fail else "n"
    nodes = [
        helper.make_node("Cast", ["mask"], ["m"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["m", "axis"], ["n"], keepdims=1),
        helper.make_node("Sub", ["one", "m"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "axis"], ["left"], keepdims=1),
        helper.make_node("Mul", [count, "zero"], ["nothing"]),
        helper.make_node("Div", ["nothing", count], ["fine"]),
        helper.make_node("Add", ["x", "fine"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length"]),
            helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length"])],
        [
            numpy_helper.from_array(np.asarray(1, np.float32), "one"),
            numpy_helper.from_array(np.asarray(0, np.float32), "zero"),
            numpy_helper.from_array(np.asarray([1]), "axis"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return ir.load(path)


@pytest.mark.parametrize(("all_ones_fail", "fill"), [(False, "ones"), (True, "zeros")])
def test_a_mask_that_leaves_something_is_found(all_ones_fail: bool, fill: str, tmp_path: Path) -> None:
    model = masked(tmp_path / "m.onnx", all_ones_fail=all_ones_fail)
    trial = find_trial(session(tmp_path / "m.onnx"), model, 2)
    assert trial.fill == fill
    assert trial.inputs(model, 2, seed=1)["mask"].dtype == np.bool_


def test_known_masks_and_integers_are_kept_and_floats_are_drawn(tmp_path: Path) -> None:
    model = masked(tmp_path / "m.onnx", all_ones_fail=True)
    mask = np.asarray([[True, False, False], [False, True, True]])
    known = Known({"x": np.zeros((2, 3), np.float32), "mask": mask})
    trial = find_trial(session(tmp_path / "m.onnx"), model, 5, known=known)
    inputs = trial.inputs(model, 5, seed=1)
    np.testing.assert_array_equal(inputs["mask"], mask[[0, 1, 0, 1, 0]])
    assert inputs["x"].shape == (5, 3)
    assert inputs["x"].std() > 0.5


def test_an_axis_that_is_a_sum_has_the_size_of_the_sum() -> None:
    shape = ir.Shape(["batch", "past_sequence + sequence"])
    mask = ir.Value(name="attention_mask", type=ir.TensorType(ir.DataType.INT64), shape=shape)
    model = ir.Model(ir.Graph([mask], [], nodes=[], opset_imports={"": 17}), ir_version=9)
    assert Trial(8).inputs(model, 3, seed=0)["attention_mask"].shape == (3, 16)


def test_not_a_number_on_both_sides_is_no_difference_and_on_one_side_is() -> None:
    x = np.asarray([1.0, np.nan, np.inf, 2.0])
    assert compare({"y": x}, {"y": x.copy()}) == 0
    assert agreement(1, {"y": x}, {"y": x}).finite == 0.5
    for i, other in ((0, np.nan), (1, 1.0), (2, -np.inf), (2, np.nan)):
        changed = x.copy()
        changed[i] = other
        assert compare({"y": changed}, {"y": x}) == np.inf
    slightly = x.copy()
    slightly[0] *= 1.001
    assert 1e-4 < compare({"y": slightly}, {"y": x}) < 1e-3


def test_a_model_that_never_answers_with_a_number_cannot_be_verified() -> None:
    require([Agreement(1, 0.0, 0.01)], "m.onnx")
    with pytest.raises(VerificationError, match="nothing but NaN or infinity on every input that was tried"):
        require([Agreement(1, 0.0, 0.0)], "m.onnx")
