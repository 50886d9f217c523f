"""Transposes that can be avoided are, and nothing else changes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from spm_compress.export.splicing.features_first import keep_features_first
from spm_compress.export.splicing.transposes import Transposes
from spm_compress.export.verification import session
from spm_compress.forms.lowering import Layout

# In each graph `turn` stands for FeaturesFirst then FeaturesLast: what remains where a layer was.
CASES = {
    "a chain with bias and activation": (
        "y0 = turn(x) a = Add(y0, bias) b = Relu(a) y = turn(b)",
        {"FeaturesFirst": 1, "FeaturesLast": 1},
    ),
    "three layers of one value": (
        "p = turn(x) q = turn(x) r = turn(x) s = Mul(p, q) y = Add(s, r)",
        {"FeaturesFirst": 1, "FeaturesLast": 3},
    ),
    "a value that is wanted both ways": (
        "y0 = turn(x) a = Tanh(y0) b = turn(a) y = Add(a, b)",
        {"FeaturesFirst": 1, "FeaturesLast": 2},
    ),
    "a residual connection": (
        "y0 = turn(x) a = Add(y0, x) y = turn(a)",
        {"FeaturesFirst": 1, "FeaturesLast": 1},
    ),
    "a constant that has no features": (
        "y0 = turn(x) a = Mul(y0, two) b = Clip(a, low) y = turn(b)",
        {"FeaturesFirst": 1, "FeaturesLast": 1},
    ),
    "something that is no elementwise operator": (
        "y0 = turn(x) a = Softmax(y0) y = turn(a)",
        {"FeaturesFirst": 2, "FeaturesLast": 2},
    ),
    "a constant along the rows": (
        "y0 = turn(x) a = Add(y0, rows) y = turn(a)",
        {"FeaturesFirst": 2, "FeaturesLast": 2},
    ),
    "an operand that is repeated": (
        "y0 = turn(x) a = Add(y0, x1) y = turn(a)",
        {"FeaturesFirst": 2, "FeaturesLast": 2},
    ),
}
TENSORS = {
    "bias": np.linspace(-1, 1, 4, dtype=np.float32),
    "two": np.float32([2]),
    "low": np.asarray(-0.3, np.float32),
    "rows": np.linspace(-1, 1, 3, dtype=np.float32).reshape(3, 1),
}


def graph(text: str) -> ir.Model:
    body = text.replace("turn(", "Identity(").replace(") ", ")\n")
    made = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, 3, 4] x, float[1, 3, 4] x1) => (float[batch, 3, 4] y) {{ {body} }}"""
    )
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in TENSORS.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(made))
    return model


def with_turns(model: ir.Model) -> ir.Model:
    turns = Transposes(model, 18)
    for node in list(model.graph):
        if node.op_type == "Identity":
            x, y = node.inputs[0], node.outputs[0]
            assert x is not None
            (first,) = turns.into(Layout.FEATURE_MAJOR, x)
            after = turns.back(Layout.FEATURE_MAJOR, first.outputs[0], x, 4)
            last = after[-1].outputs[0]
            last.name, last.type, last.shape = y.name, y.type, y.shape
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], [first, *after], [y], [last])
    return model


@pytest.mark.parametrize("case", CASES)
def test_turns_are_removed_and_values_stay(case: str) -> None:
    text, expected = CASES[case]
    model = with_turns(graph(text))
    keep_features_first(model)
    kinds = Counter(node.op_type.rstrip("0123456789") for node in model.graph)
    assert {kind: kinds[kind] for kind in expected} == expected
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    feed = {"x": x, "x1": x[:1]}
    (before,) = session(ir.serde.serialize_model(graph(text)).SerializeToString()).run(None, feed)
    (after,) = session(ir.serde.serialize_model(model).SerializeToString()).run(None, feed)
    np.testing.assert_allclose(after, before, rtol=1e-6)


def test_names_of_axes_are_believed_only_where_an_input_has_them() -> None:
    """Some exporters write the same name on axes that differ: a turned back value would get the wrong rows."""
    made = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, "?", 4] x) => (float[batch, "?", 4] y) {
            h = Slice(x, one, big, one)
            p = Identity(x)
            q = Identity(h)
            y = Concat <axis=1> (p, q)
        }"""
    )
    tensors = {"one": np.int64([1]), "big": np.int64([99])}
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in tensors.items())
    model = ir.from_proto(made)
    for node in model.graph:
        if node.op_type == "Slice":
            x = node.inputs[0]
            assert x is not None
            node.outputs[0].shape, node.outputs[0].type = x.shape, x.type
    keep_features_first(with_turns(model))
    x_values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    (found,) = session(ir.serde.serialize_model(model).SerializeToString()).run(None, {"x": x_values})
    assert found.shape[1] == 3 + 2
