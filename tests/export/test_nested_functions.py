"""Weights used several times in random nests of functions and branches: every use is replaced."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from awkward_graphs import WIDTH, draw, fitted, graph, info, matrices_in, node, overwrite, relative_error, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spm_compress import ExportSettings, export_onnx, open_source
from spm_compress.export.lowering import Blocks, Dense, Stages

NAMES = ("u", "v", "w")
LEVELS = 2
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]


def branch(name: str, nodes: list[onnx.NodeProto], own: np.ndarray | None = None) -> onnx.GraphProto:
    """A branch, which may have a weight of its own, of the same name as the other."""
    initializers = [] if own is None else [numpy_helper.from_array(own, "own")]
    return helper.make_graph(nodes, name, [], [info("z")], initializers)


def layer(level: int, calls: list[tuple[int, int]], is_turned: bool) -> onnx.FunctionProto:
    """A function of a level: a product, or calls of those of lower levels, with the weights in any order."""
    nodes, state = [], "a"
    for i, (below, shift) in enumerate(calls):
        order = [NAMES[(j + shift) % 3] for j in range(3)]
        if level == 0 or below >= level:
            nodes += [
                node("Transpose", [order[0]], f"t{i}", perm=[1, 0])
                if is_turned
                else node("Identity", [order[0]], f"t{i}")
            ]
            nodes += [node("MatMul", [state, f"t{i}"], f"s{i}")]
        else:
            nodes += [node(f"L{below}", [state, *order], f"s{i}", "mine")]
        state = f"s{i}"
    nodes.append(node("Identity", [state], "r"))
    return helper.make_function("mine", f"L{level}", ["a", *NAMES], ["r"], nodes, OPSETS)


CALLS = st.lists(st.tuples(st.integers(0, LEVELS), st.integers(0, 2)), min_size=1, max_size=2)


@st.composite
def nests(draw_from: st.DrawFn) -> onnx.ModelProto:
    functions = [layer(level, draw_from(CALLS), draw_from(st.booleans())) for level in range(LEVELS)]

    def call(x: str, output: str) -> onnx.NodeProto:
        return node(f"L{draw_from(st.integers(0, LEVELS - 1))}", [x, *NAMES], output, "mine")

    nodes = [call("x", "h")]
    if draw_from(st.booleans()):
        own = draw(7) if draw_from(st.booleans()) else None
        inner = [node("MatMul", ["h", "u" if own is None else "own"], "k"), call("k", "z")]
        nodes += [
            node("ReduceSum", ["x"], "sum", keepdims=0),
            node("Greater", ["sum", "nought"], "positive"),
            node(
                "If", ["positive"], "i", then_branch=branch("t", inner, own), else_branch=branch("e", [call("h", "z")])
            ),
        ]
    else:
        nodes.append(node("Relu", ["h"], "i"))
    nodes.append(node("MatMul", ["i", draw_from(st.sampled_from(NAMES))]))
    tensors = {name: draw(i) for i, name in enumerate(NAMES)} | {"nought": np.float32(0)}
    return graph(nodes, tensors, functions=functions)


@settings(max_examples=4)
@given(nests(), st.sampled_from([Stages(), Blocks(), Dense()]))
def test_every_use_in_any_nest_is_replaced(made: onnx.ModelProto, lowering: Stages | Blocks | Dense) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, artifact = fitted(made, folder)
        exported = export_onnx(
            artifact, folder / "out.onnx", source=open_source(path), settings=ExportSettings(lowering)
        )
        assert exported.spliced.missing == ()
        out = onnx.load(exported.path)
        expected, source = onnx.load(path), open_source(path)
        for each in artifact.layers:
            weight = source.read(each.name).numpy()
            assert not any(np.array_equal(kept, turned) for kept in matrices_in(out) for turned in (weight, weight.T))
            assert overwrite(expected, weight, each.spm.to_dense().numpy())
        for batch in (1, 3):
            x = 3 * draw(batch, batch, WIDTH)
            answer = run(expected, x=x)["y"]
            assert relative_error(run(exported.path, x=x)["y"], answer) < 1e-4
            assert relative_error(run(path, x=x)["y"], answer) > 1e-3


def test_a_function_of_another_opset_with_the_same_operators_is_inlined(tmp_path: Path) -> None:
    older = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "L", ["a", "m"], ["r"], [node("MatMul", ["a", "m"], "r")], older)
    path, artifact = fitted(
        graph([node("L", ["x", "w"], domain="mine")], {"w": draw(0)}, functions=[function]), tmp_path
    )
    exported = export_onnx(artifact, tmp_path / "o.onnx", source=open_source(path), settings=ExportSettings(Blocks()))
    assert list(exported.spliced.nodes) == ["w"]


def test_float16_converts_what_stands_in_functions(tmp_path: Path) -> None:
    from spm_compress.export import Precision

    function = helper.make_function("mine", "L", ["a", "m"], ["r"], [node("Mul", ["a", "m"], "r")], OPSETS[:1])
    made = graph(
        [node("L", ["x", "k"], "h", "mine"), node("MatMul", ["h", "w"])],
        {"w": draw(0), "k": draw(1, WIDTH)},
        functions=[function],
    )
    path, artifact = fitted(made, tmp_path)
    half = ExportSettings(Blocks(), precision=Precision.FLOAT16)
    assert export_onnx(artifact, tmp_path / "o.onnx", source=open_source(path), settings=half).path.exists()


@pytest.mark.parametrize("is_other", [False, True])
def test_what_a_branch_hands_out_is_the_matrix_that_is_made(is_other: bool, tmp_path: Path) -> None:
    whole = [WIDTH, WIDTH]
    then = helper.make_graph([node("Identity", ["w"], "z")], "t", [], [info("z", whole)])
    held = [] if is_other else [node("Identity", ["v"], "z")]
    stored = [numpy_helper.from_array(draw(5), "z")] if is_other else []
    other = helper.make_graph(held, "e", [], [info("z", whole)], stored)
    nodes = [
        node("If", ["yes"], "m", then_branch=then, else_branch=other),
        node("MatMul", ["x", "m"], "h"),
        node("MatMul", ["h", "w"]),
    ]
    inputs = [info("x"), info("yes", [], TensorProto.BOOL)]
    path, artifact = fitted(graph(nodes, {"w": draw(0), "v": draw(1)}, inputs), tmp_path)
    exported = export_onnx(artifact, tmp_path / "o.onnx", source=open_source(path), settings=ExportSettings(Blocks()))
    assert exported.spliced.elsewhere == {"w": ["an output of the graph"]}
    expected = onnx.load(path)
    (fit,) = artifact.layers
    overwrite(expected, draw(0).T, fit.spm.to_dense().numpy())
    for yes in (True, False):
        x, flag = draw(9, 3, WIDTH), np.array(yes)
        assert relative_error(run(exported.path, x=x, yes=flag)["y"], run(expected, x=x, yes=flag)["y"]) < 1e-4
