"""Inputs that a graph can take: masks, computed axes, sequences, optional and known inputs; NaN on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from awkward_graphs import WIDTH, draw, fitted, graph, info, node
from onnx import TensorProto, helper

from spm_compress import ExportSettings, export_onnx, open_source
from spm_compress.errors import VerificationError
from spm_compress.export.measuring.footprint import footprint
from spm_compress.export.trials import Known, find_trial, random_inputs
from spm_compress.export.verification import session
from spm_compress.forms.lowering import Blocks


def joined(past: str | int, total: str | int) -> ir.Model:
    nodes = [node("Concat", ["p", "x"], "c", axis=1), node("Add", ["c", "m"])]
    inputs = [info(name, ["b", axis, 8]) for name, axis in (("x", "s"), ("p", past), ("m", total))]
    return ir.from_proto(graph(nodes, {}, inputs, [info("y", ["b", total, 8])]))


AXES = [("past", "past + s"), ("2*s", "3*s"), (1, "s + 1"), ("past_length", "total_length"), ("s-1", "2*s - 1")]


@pytest.mark.parametrize(("past", "total"), AXES)
def test_axes_that_are_computed_of_others_fit_together(past: str | int, total: str | int) -> None:
    model = joined(past, total)
    runtime = session(ir.to_proto(model).SerializeToString())
    assert find_trial(runtime, model, 2).size == 16


def test_a_name_that_is_no_sum_is_a_size_of_its_own() -> None:
    inputs = random_inputs(joined("past key", "__import__('os')"), 2, 5, 0)
    assert {name: array.shape[1] for name, array in inputs.items()} == {"x": 5, "p": 5, "m": 5}


@pytest.mark.parametrize("masked", [True, False])
def test_a_mask_that_leaves_nothing_is_not_tried_for_long(masked: bool) -> None:
    """True says what to ignore, or what to keep."""
    choice = ["mask", "least", "x"] if masked else ["mask", "x", "least"]
    nodes = [node("Where", choice, "h"), node("Softmax", ["h"], axis=1)]
    inputs = [info("x", ["b", 8]), info("mask", ["b", 8], TensorProto.BOOL)]
    model = ir.from_proto(graph(nodes, {"least": np.float32(-np.inf)}, inputs, [info("y", ["b", 8])]))
    trial = find_trial(session(ir.to_proto(model).SerializeToString()), model, 2)
    assert trial.inputs(model, 2, 0)["mask"].all() != masked


def test_what_is_known_is_tried_first_with_other_floats() -> None:
    inputs = [info("known", ["b", 8]), info("i", ["b"], TensorProto.INT64)]
    made = graph(
        [node("Gather", ["t", "i"], "g"), node("Add", ["g", "known"])],
        {"t": draw(0, 90, 8)},
        inputs,
        [info("y", ["b", 8])],
    )
    model = ir.from_proto(made)
    arrays = {"known": draw(1, 2, 8), "i": np.array([77, 3])}
    trial = find_trial(session(made.SerializeToString()), model, 3, known=Known(arrays))
    found = trial.inputs(model, 3, 0)
    assert found["i"].tolist() == [77, 3, 77]
    assert found["known"].shape == (3, 8) and not np.array_equal(found["known"][:2], arrays["known"])


def unusual() -> tuple[list[object], list[object]]:
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", WIDTH])
    made = [helper.make_value_info("q", helper.make_sequence_type_proto(tensor))]
    made.append(helper.make_value_info("o", helper.make_optional_type_proto(tensor)))
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("ConcatFromSequence", ["q"], "c", axis=0),
        node("OptionalHasElement", ["o"], "has"),
        node("Cast", ["has"], "one", to=TensorProto.FLOAT),
        node("Add", ["h", "c"], "d"),
        node("Add", ["d", "one"]),
    ]
    return nodes, [info("x"), *made]


def test_sequences_and_optional_inputs_are_exported_and_timed(tmp_path: Path) -> None:
    nodes, inputs = unusual()
    path, artifact = fitted(graph(nodes, {"w": draw(0)}, inputs), tmp_path)  # type: ignore[arg-type]
    exported = export_onnx(artifact, tmp_path / "o.onnx", source=open_source(path), settings=ExportSettings(Blocks()))
    assert max(each.error for each in exported.agreements) < 1e-5
    given = random_inputs(ir.load(path), 2, 4, 0)
    assert given["o"] is None
    assert footprint(exported.path, given, "CPUExecutionProvider", 1).bytes == exported.bytes


def test_nothing_but_nan_on_both_sides_is_told_as_such(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "h"), node("Abs", ["h"], "a"), node("Neg", ["a"], "n"), node("Log", ["n"])]
    path, artifact = fitted(graph(nodes, {"w": draw(0)}), tmp_path)
    with pytest.raises(VerificationError, match="the original model, too, answers with nothing but NaN") as told:
        export_onnx(artifact, tmp_path / "o.onnx", source=open_source(path), settings=ExportSettings(Blocks()))
    assert "please report" not in str(told.value)
    assert not (tmp_path / "o.onnx").exists()
