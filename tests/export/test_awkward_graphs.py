"""Graphs that an adversary wrote: weights that are outputs, names and functions that look like ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from awkward_graphs import WIDTH, draw, fitted, graph, info, matrices_in, node, overwrite, relative_error, run
from onnx import helper, numpy_helper

from spm_compress import ExportSettings, export_onnx, open_source
from spm_compress.errors import ExportError, SourceError
from spm_compress.export import Precision
from spm_compress.forms.lowering import Blocks, Dense

TWICE = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"])]


def exported(made: onnx.ModelProto, folder: Path, *include: str, **options: object) -> tuple[onnx.ModelProto, object]:
    """Fit and export a model; compare it with the dense graph, weights overwritten by hand."""
    path, artifact = fitted(made, folder, *include)
    precision = Precision(options.get("precision", "float32"))
    found = export_onnx(
        artifact, folder / "out.onnx", source=open_source(path), settings=ExportSettings(Blocks(), precision=precision)
    )
    expected, source = onnx.load(path), open_source(path)
    for each in artifact.layers:
        assert overwrite(expected, source.read(each.name).numpy(), each.operator.to_dense().numpy())
    x = draw(9, 3, WIDTH)
    right, answers = run(expected, x=x), run(found.path, x=x)
    assert list(answers) == list(right)
    for name, answer in answers.items():
        assert relative_error(answer, right[name]) < (1e-4 if precision is Precision.FLOAT32 else 5e-2)
    return onnx.load(found.path), found.spliced


OURS = {"w": draw(0), "v": draw(1), "w.spm.0.off_diagonal": draw(2, WIDTH), "w.operator": draw(3, WIDTH)}


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_values_and_nodes_that_are_named_like_ours(precision: str, tmp_path: Path) -> None:
    nodes = [
        node("MatMul", ["x", "w"], "w.spm.y"),
        helper.make_node("Add", ["w.spm.y", "w.spm.0.off_diagonal"], ["w.matrix.0"], name="w"),
        node("MatMul", ["w.matrix.0", "v"], "v.operator"),
        helper.make_node("Add", ["v.operator", "w.operator"], ["y"], name="v"),
    ]
    exported(graph(nodes, OURS), tmp_path, precision=precision)


def test_functions_of_our_domain_stay_what_they_are(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 18)]
    names = ("FeaturesFirst", "LeadingDimensions", "Stage", f"SPM_{WIDTH}x{WIDTH}_2stages_blocks")
    functions = [
        helper.make_function("spm_compress", name, ["a"], ["r"], [node(kind, ["a"], "r")], opset)
        for name, kind in zip(names, ("Relu", "Tanh", "Neg", "Sigmoid"), strict=True)
    ]
    nodes = [node(name, [at], to, "spm_compress") for name, at, to in zip(names, "xabc", "abcd", strict=True)]
    made = graph([*nodes, node("MatMul", ["d", "w"])], {"w": draw(0)}, functions=functions, domains=["spm_compress"])
    exported(made, tmp_path)


OUTPUTS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a weight": lambda: graph([node("MatMul", ["x", "w"])], {"w": draw(0)}, (), [info("y"), info("w", [WIDTH, WIDTH])]),
    "a weight, turned": lambda: graph(
        [node("Transpose", ["w"], "t"), node("MatMul", ["x", "t"])],
        {"w": draw(0)},
        (),
        [info("y"), info("t", [WIDTH, WIDTH])],
    ),
}


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("case", OUTPUTS)
def test_a_weight_that_is_an_output_is_the_matrix_that_is_made(case: str, precision: str, tmp_path: Path) -> None:
    _, spliced = exported(OUTPUTS[case](), tmp_path, precision=precision)
    assert spliced.elsewhere == {"w": ["an output of the graph"]}  # type: ignore[attr-defined]


def test_a_table_is_no_quantized_copy_of_the_dense_weight(tmp_path: Path) -> None:
    nodes = [node("Gather", ["w", "row"], "g"), node("MatMul", ["x", "w"], "h"), node("Add", ["h", "g"])]
    exported(graph(nodes, {"w": draw(0), "row": np.array(3)}), tmp_path, "w", precision="int8")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_weight_of_a_branch_is_gone_with_its_product(precision: str, tmp_path: Path) -> None:
    own = [[numpy_helper.from_array(draw(seed), "w")] for seed in (5, 6)]
    then, other = (helper.make_graph([node("MatMul", ["x", "w"], "z")], "g", [], [info("z")], each) for each in own)
    nodes = [
        node("ReduceSum", ["x"], "sum", keepdims=0),
        node("Greater", ["sum", "nought"], "positive"),
        node("If", ["positive"], then_branch=then, else_branch=other),
    ]
    out, _ = exported(graph(nodes, {"nought": np.float32(0)}), tmp_path, precision=precision)
    assert all(each.shape != (WIDTH, WIDTH) for each in matrices_in(out))


def test_float16_takes_weights_that_are_listed_as_inputs(tmp_path: Path) -> None:
    made = graph(TWICE, {"w": draw(0)})
    made.graph.input.append(info("w", [WIDTH, WIDTH]))
    exported(made, tmp_path, precision="float16")


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("field", ["shape", "type"])
def test_an_output_that_says_nothing_says_nothing_afterwards(field: str, precision: str, tmp_path: Path) -> None:
    made = graph(TWICE, {"w": draw(0)})
    output = made.graph.output[0]
    output.ClearField("type") if field == "type" else output.type.tensor_type.ClearField("shape")
    out, _ = exported(made, tmp_path, precision=precision)
    assert out.graph.output[0] == output


def test_a_layer_that_is_not_in_the_graph_is_an_error_unless_it_is_allowed(tmp_path: Path) -> None:
    _, artifact = fitted(graph([node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "v"])], OURS), tmp_path)
    onnx.save(graph([node("MatMul", ["x", "w"])], OURS), tmp_path / "less.onnx")
    given = {"graph": tmp_path / "less.onnx"}
    with pytest.raises(ExportError, match=r"^v: fitted, but the graph does not multiply.*`allow_missing`"):
        export_onnx(artifact, tmp_path / "o.onnx", settings=ExportSettings(Blocks()), **given)
    assert not (tmp_path / "o.onnx").exists()
    allowed = ExportSettings(Dense(), allow_missing=True)
    assert export_onnx(artifact, tmp_path / "o.onnx", settings=allowed, **given).spliced.missing == ("v",)


def test_a_branch_that_hides_a_tensor_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime takes the tensor that is hidden, onnx_ir the one that hides it."""
    own = [numpy_helper.from_array(draw(5), "w")]
    body = helper.make_graph([node("MatMul", ["x", "w"], "z")], "g", [], [info("z")], own)
    nodes = [node("If", ["yes"], then_branch=body, else_branch=body)]
    onnx.save(graph(nodes, {"w": draw(0), "yes": np.array(True)}), tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="has a tensor 'w' of its own where one of that name is known already"):
        open_source(tmp_path / "m.onnx")


def test_a_sparse_tensor_is_told(tmp_path: Path) -> None:
    made = graph([node("MatMul", ["x", "w"], "h"), node("MatMul", ["h", "s"])], {"w": draw(0)})
    values, places = (
        numpy_helper.from_array(np.array([each]), name) for each, name in ((np.float32(1), "s"), (5, "i"))
    )
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [WIDTH, WIDTH]))
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(SourceError, match="reads 's', which it does not define, unless as a sparse tensor"):
        open_source(tmp_path / "m.onnx")
