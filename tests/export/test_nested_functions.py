"""Functions and branches in any nest: every use of a weight is replaced, or the export fails."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.forms.lowering import Blocks, Dense, Lowering, Stages

N = 40
SETTINGS = CompressSettings(FitSettings(stages=2, steps=2, block=8))
WEIGHTS = {
    name: np.random.default_rng(i).standard_normal((N, N)).astype(np.float32) / 6 for i, name in enumerate("uvw")
}
IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]

# A program: a weight to multiply by; "row": add one of its rows; or a call or an If around two programs.
Program = tuple[str, ...] | tuple[str, "Program", "Program"]
LEAVES = st.tuples(st.sampled_from(["times", "behind", "left", "row"]), st.sampled_from(sorted(WEIGHTS)))
PROGRAMS = st.recursive(
    LEAVES, lambda inner: st.tuples(st.sampled_from(["call", "branch"]), inner, inner), max_leaves=5
)


class Writer:
    """Writes a program as nodes from one value to another; a call becomes a function that takes the weights."""

    def __init__(self) -> None:
        self.functions: list[onnx.FunctionProto] = []
        self.count = 0

    def fresh(self, name: str) -> str:
        self.count += 1
        return f"{name}{self.count}"

    def nodes(self, program: Program, x: str, y: str) -> list[onnx.NodeProto]:
        kind, *rest = program
        if kind == "times":
            return [helper.make_node("MatMul", [x, rest[0]], [y])]
        if kind == "behind":
            turned = self.fresh("t")
            turn = helper.make_node("Transpose", [rest[0]], [turned], perm=[1, 0])
            return [turn, helper.make_node("Gemm", [x, turned], [y], transB=1)]
        if kind == "left":
            turned, product = self.fresh("t"), self.fresh("p")
            return [
                helper.make_node("Transpose", [x], [turned], perm=[1, 0]),
                helper.make_node("MatMul", [rest[0], turned], [product]),
                helper.make_node("Transpose", [product], [y], perm=[1, 0]),
            ]
        if kind == "row":
            row = self.fresh("r")
            return [helper.make_node("Gather", [rest[0], "three"], [row]), helper.make_node("Add", [x, row], [y])]
        first, second = rest
        if kind == "call":
            between, inputs = self.fresh("b"), ["a", *WEIGHTS, "three", "nought"]
            body = [*self.nodes(first, "a", between), *self.nodes(second, between, "z")]
            name = self.fresh("F")
            self.functions.append(helper.make_function("mine", name, inputs, ["z"], body, IMPORTS))
            return [helper.make_node(name, [x, *WEIGHTS, "three", "nought"], [y], domain="mine")]
        bodies = {}
        for branch, inner in (("then_branch", first), ("else_branch", second)):
            end = self.fresh("e")
            info = helper.make_tensor_value_info(end, TensorProto.FLOAT, None)
            bodies[branch] = helper.make_graph(self.nodes(inner, x, end), branch, [], [info])
        total, positive = self.fresh("s"), self.fresh("c")
        return [
            helper.make_node("ReduceSum", [x], [total], keepdims=0),
            helper.make_node("Greater", [total, "nought"], [positive]),
            helper.make_node("If", [positive], [y], **bodies),
        ]


def meant(program: Program, x: np.ndarray, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Compute a program in numpy."""
    kind, *rest = program
    match kind:
        case "times" | "behind":
            return x @ weights[rest[0]]
        case "left":
            return x @ weights[rest[0]].T
        case "row":
            return x + weights[rest[0]][3]
        case "call":
            return meant(rest[1], meant(rest[0], x, weights), weights)
    return meant(rest[0] if x.sum() > 0 else rest[1], x, weights)


def written(program: Program) -> onnx.ModelProto:
    writer = Writer()
    nodes = writer.nodes(program, "x", "y")
    tensors = {**WEIGHTS, "three": np.asarray(3), "nought": np.asarray(0, np.float32)}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", N])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", N])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, functions=writer.functions, opset_imports=IMPORTS, ir_version=8)


def replaced(artifact: Artifact) -> dict[str, np.ndarray]:
    """Return the weights as they are stored, with the fitted ones multiplied out, whichever way they hold them."""
    found = dict(WEIGHTS)
    for layer in artifact.layers:
        s = layer.operator.to_dense().numpy()
        w = WEIGHTS[layer.name]
        found[layer.name] = min((s, s.T), key=lambda each: float(np.linalg.norm(each - w)))
    return found


@settings(max_examples=40, deadline=None)
@given(program=PROGRAMS, lowering=st.sampled_from([Stages(), Blocks(), Dense()]))
def test_the_export_computes_the_program_with_the_fitted_matrices(program: Program, lowering: Lowering) -> None:
    assume(used(program))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(written(program), folder / "m.onnx")
        source = open_source(folder / "m.onnx")
        # A weight of which rows are looked up is fitted, too, once it is asked for by name.
        artifact = fit_model(source, CompressSettings(SETTINGS.fit, include=used(program)), beside=folder)
        assert {layer.name for layer in artifact.layers} == set(used(program))
        made = export_onnx(artifact, folder / "out.onnx", source=source, settings=ExportSettings(lowering))
        runtime = onnxruntime.InferenceSession(made.path, providers=["CPUExecutionProvider"])
        weights = replaced(artifact)
        for seed in range(3):
            x = np.random.default_rng(seed).standard_normal((4, N)).astype(np.float32)
            expected = meant(program, x, weights)
            np.testing.assert_allclose(runtime.run(None, {"x": x})[0], expected, atol=1e-4 * np.abs(expected).max())
        left = {each.name for each in onnx.load(made.path).graph.initializer if list(each.dims) == [N, N]}
        assert not left & {layer.name for layer in artifact.layers}


def used(program: Program) -> tuple[str, ...]:
    """Return the weights that a program multiplies by: the others are only looked up, and no maps."""
    kind, *rest = program
    if kind in ("call", "branch"):
        return tuple(sorted({*used(rest[0]), *used(rest[1])}))
    return () if kind == "row" else (rest[0],)
