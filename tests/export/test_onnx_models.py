"""ONNX in, ONNX out: wherever and however a graph holds its matrices, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.errors import SourceError
from spm_compress.forms.lowering import Blocks, Dense, Lowering, Stages

OUT, IN = 48, 40
WEIGHT = np.random.default_rng(0).standard_normal((OUT, IN)).astype(np.float32)  # E
SETTINGS = CompressSettings(FitSettings(stages=2, steps=5, block=8))


def model(
    nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], shape: list[object], **options: object
) -> onnx.ModelProto:
    is_image = any(each.op_type == "Conv" for each in nodes)
    y_shape = [shape[0], OUT, *shape[2:]] if is_image else [*shape[:-1], OUT]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    opset = helper.make_opsetid("", int(str(options.pop("opset", 18))))
    return helper.make_model(graph, opset_imports=[opset, helper.make_opsetid("mine", 1)], ir_version=8, **options)


def node(kind: str, inputs: list[str], output: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], name=f"{kind}_{output}", **attributes)


def constant(name: str, array: np.ndarray) -> onnx.NodeProto:
    return node("Constant", [], name, value=numpy_helper.from_array(array, name))


def behind(*nodes: onnx.NodeProto, **tensors: np.ndarray) -> onnx.ModelProto:
    return model([*nodes, node("MatMul", ["x", "w"])], tensors, ["batch", "sequence", IN])


def dequantized() -> onnx.ModelProto:
    scale = (np.abs(WEIGHT).max(1) / 127).astype(np.float32)
    integers = np.round(WEIGHT / scale[:, None]).astype(np.int8)
    zero = np.zeros(OUT, np.int8)
    dequantize = node("DequantizeLinear", ["q", "scale", "zero"], "w", axis=1)
    return behind(dequantize, q=integers.T.copy(), scale=scale, zero=zero)


def in_branch() -> onnx.ModelProto:
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", OUT])
    product = helper.make_graph([node("MatMul", ["x", "w"], "z")], "then", [], [z])
    other = helper.make_graph([node("MatMul", ["x", "v"], "z")], "else", [], [z])
    nodes = [
        node("ReduceSum", ["x"], "sum", keepdims=0),
        node("Greater", ["sum", "nought"], "positive"),
        node("If", ["positive"], then_branch=product, else_branch=other),
    ]
    tensors = {"w": WEIGHT.T.copy(), "v": -2 * WEIGHT.T, "nought": np.float32(0)}
    return model(nodes, {name: np.asarray(array) for name, array in tensors.items()}, ["batch", IN])


def in_loop() -> onnx.ModelProto:
    square = np.pad(WEIGHT, ((0, 0), (0, OUT - IN)))
    infos = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("state", TensorProto.FLOAT, ["batch", OUT])]
    inputs = [helper.make_tensor_value_info(*info) for info in infos]
    outputs = [
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
        helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", OUT]),
    ]
    body = helper.make_graph(
        [node("Identity", ["go"], "go_on"), node("MatMul", ["state", "w"], "next")], "body", inputs, outputs
    )
    loop = helper.make_node("Loop", ["count", "yes", "x"], ["y"], name="loop", body=body)
    tensors = {"w": square.T.copy() / 10, "count": np.asarray(3), "yes": np.asarray(True)}
    return model([loop], tensors, ["batch", OUT])


def in_scan() -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", IN]) for name in ("state", "step")]
    outputs = [
        helper.make_tensor_value_info("next", TensorProto.FLOAT, ["batch", IN]),
        helper.make_tensor_value_info("made", TensorProto.FLOAT, ["batch", OUT]),
    ]
    nodes = [node("Add", ["state", "step"], "next"), node("MatMul", ["next", "w"], "made")]
    body = helper.make_graph(nodes, "body", inputs, outputs)
    scan = helper.make_node("Scan", ["start", "x"], ["last", "y"], name="scan", body=body, num_scan_inputs=1)
    return model([scan], {"w": WEIGHT.T.copy(), "start": np.zeros((3, IN), np.float32)}, [4, 3, IN])


def in_function() -> onnx.ModelProto:
    body = [node("MatMul", ["a", "m"], "p"), node("Relu", ["p"], "r")]
    imports = [helper.make_opsetid("", 18)]
    made = model([helper.make_node("Layer", ["x", "w"], ["y"], domain="mine")], {"w": WEIGHT.T.copy()}, ["batch", IN])
    made.functions.append(helper.make_function("mine", "Layer", ["a", "m"], ["r"], body, imports))
    return made


def convolution(rank: int) -> onnx.ModelProto:
    kernel = WEIGHT.reshape(OUT, IN, *[1] * (rank - 2))
    nodes = [node("Conv", ["x", "w", "b"], "c"), node("Relu", ["c"])]
    return model(nodes, {"w": kernel, "b": np.ones(OUT, np.float32)}, ["batch", IN, *[5, 6][: rank - 2]])


def in_nested_functions() -> onnx.ModelProto:
    """Two calls Lin, which multiplies; one weight is used through both."""
    square, other = np.pad(WEIGHT, ((0, 0), (0, OUT - IN))), np.pad(2 * WEIGHT, ((0, 0), (OUT - IN, 0)))
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
    once = helper.make_function("mine", "Lin", ["a", "m"], ["r"], [node("MatMul", ["a", "m"], "r")], imports[:1])
    calls = [
        helper.make_node("Lin", ["a", "m"], ["q"], domain="mine"),
        helper.make_node("Lin", ["q", "n"], ["r"], domain="mine"),
    ]
    twice = helper.make_function("mine", "Two", ["a", "m", "n"], ["r"], calls, imports)
    nodes = [
        helper.make_node("Two", ["x", "w", "v"], ["h"], domain="mine"),
        helper.make_node("Lin", ["h", "w"], ["y"], domain="mine"),
    ]
    made = model(nodes, {"w": square, "v": other}, ["batch", OUT])
    made.functions.extend([once, twice])
    return made


def in_branches_of_one_name() -> onnx.ModelProto:
    """Both branches of an If hold a weight of their own that is called w."""
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", OUT])
    bodies = {
        name: helper.make_graph([node("MatMul", ["x", "w"], "z")], name, [], [z], [numpy_helper.from_array(array, "w")])
        for name, array in (("then_branch", WEIGHT.T.copy()), ("else_branch", -2 * WEIGHT.T))
    }
    nodes = [
        node("ReduceSum", ["x"], "sum", keepdims=0),
        node("Greater", ["sum", "nought"], "positive"),
        node("If", ["positive"], **bodies),
    ]
    return model(nodes, {"nought": np.asarray(0, np.float32)}, ["batch", IN])


def on_the_left() -> onnx.ModelProto:
    nodes = [node("Transpose", ["x"], "t", perm=[1, 0]), node("MatMul", ["w", "t"], "z"), node("Transpose", ["z"])]
    return model(nodes, {"w": WEIGHT}, ["batch", IN])


def scaled_gemm() -> onnx.ModelProto:
    nodes = [
        node("Transpose", ["x"], "t", perm=[1, 0]),
        node("Gemm", ["t", "w", "b"], transA=1, transB=1, alpha=0.5, beta=2.0),
    ]
    return model(nodes, {"w": WEIGHT, "b": np.ones(OUT, np.float32)}, ["batch", IN])


def strided_convolution() -> onnx.ModelProto:
    nodes = [node("Conv", ["x", "w"], strides=[2, 2], pads=[1, 1, 1, 1])]
    made = model(nodes, {"w": WEIGHT[:, :, None, None]}, ["batch", IN, 5, 6])
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def also_added() -> onnx.ModelProto:
    square = np.pad(WEIGHT, ((0, 0), (0, OUT - IN)))
    nodes = [node("MatMul", ["x", "w"], "h"), node("ReduceSum", ["w"], "s", keepdims=0), node("Add", ["h", "s"])]
    return model(nodes, {"w": square}, ["batch", OUT])


def also_looked_up() -> onnx.ModelProto:
    """A table, from which a row is added, tied to the head."""
    nodes = [
        node("Gather", ["w", "row"], "g"),
        node("Add", ["x", "g"], "h"),
        node("Transpose", ["w"], "t", perm=[1, 0]),
        node("MatMul", ["h", "t"]),
    ]
    return model(nodes, {"w": WEIGHT, "row": np.asarray(3)}, ["batch", IN])


def shared() -> onnx.ModelProto:
    square = np.pad(WEIGHT, ((0, 0), (0, OUT - IN)))
    nodes = [node("MatMul", ["x", "w"], "h"), node("Relu", ["h"], "r"), node("MatMul", ["r", "w"])]
    return model(nodes, {"w": square}, ["batch", OUT])


def listed_as_input() -> onnx.ModelProto:
    made = behind(w=WEIGHT.T.copy())
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [IN, OUT]))
    return made


CASES: dict[str, Callable[[], onnx.ModelProto]] = {
    "MatMul": lambda: behind(w=WEIGHT.T.copy()),
    "MatMul of unknown rank": lambda: model([node("MatMul", ["x", "w"])], {"w": WEIGHT.T.copy()}, ["b", "s", "t", IN]),
    "Gemm": lambda: model([node("Gemm", ["x", "w"])], {"w": WEIGHT.T.copy()}, ["batch", IN]),
    "Gemm transB, bias": lambda: model(
        [node("Gemm", ["x", "w", "b"], transB=1)], {"w": WEIGHT, "b": np.ones(OUT, np.float32)}, ["batch", IN]
    ),
    "1x1 Conv": lambda: convolution(4),
    "Conv1d": lambda: convolution(3),
    "Constant node": lambda: behind(constant("w", WEIGHT.T.copy())),
    "behind Transpose": lambda: behind(node("Transpose", ["t"], "w", perm=[1, 0]), t=WEIGHT),
    "Transpose of Constant": lambda: behind(constant("t", WEIGHT), node("Transpose", ["t"], "w")),
    "behind an identity Transpose": lambda: behind(node("Transpose", ["t"], "w", perm=[0, 1]), t=WEIGHT.T.copy()),
    "behind two Transposes": lambda: behind(
        node("Transpose", ["t"], "u", perm=[1, 0]), node("Transpose", ["u"], "w"), t=WEIGHT.T.copy()
    ),
    "behind Identity": lambda: behind(node("Identity", ["t"], "w"), t=WEIGHT.T.copy()),
    "behind Cast": lambda: behind(node("Cast", ["t"], "w", to=TensorProto.FLOAT), t=WEIGHT.T.astype(np.float16)),
    "behind DequantizeLinear": dequantized,
    "shared by two": shared,
    "in If": in_branch,
    "in Loop": in_loop,
    "in Scan": in_scan,
    "in a function": in_function,
    "in nested functions": in_nested_functions,
    "in branches of one name": in_branches_of_one_name,
    "on the left": on_the_left,
    "Gemm with transA, alpha and beta": scaled_gemm,
    "Conv with strides and padding": strided_convolution,
    "also added": also_added,
    "also looked up": also_looked_up,
    "listed as an input": listed_as_input,
    "opset 11": lambda: model([node("MatMul", ["x", "w"])], {"w": WEIGHT.T.copy()}, ["batch", IN], opset=11),
}


def run(path: Path, batch: int) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (x,) = session.get_inputs()  # a weight that is listed as an input has a default, and is not among them
    shape = [dim if isinstance(dim, int) else batch for dim in x.shape]
    return np.asarray(
        session.run(["y"], {"x": np.random.default_rng(batch).standard_normal(shape).astype(np.float32)})[0]
    )


# Left unless they are asked for by name.
ASKED = {"behind DequantizeLinear": ("q",), "also looked up": ("w",)}


def saved(made: onnx.ModelProto, folder: Path, include: tuple[str, ...] = ()) -> tuple[Path, Artifact]:
    path = folder / "model.onnx"
    onnx.save(made, path)
    return path, fit_model(open_source(path), replace(SETTINGS, include=include), beside=folder)


@pytest.mark.parametrize("lowering", [Stages(), Blocks(), Dense()], ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("case", CASES)
def test_a_matrix_is_fitted_and_replaced_wherever_it_is_held(case: str, lowering: Lowering, tmp_path: Path) -> None:
    path, artifact = saved(CASES[case](), tmp_path, ASKED.get(case, ()))
    exported = export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=ExportSettings(lowering))
    assert exported.spliced.missing == ()
    assert set(exported.spliced.nodes) == {layer.name for layer in artifact.layers}
    # The dense graph with the operators' matrices in the places of the weights, by names and by hand.
    reference = with_matrices(onnx.load(path), artifact)
    onnx.save(reference, tmp_path / "reference.onnx")
    for batch in (1, 3):
        expected = run(tmp_path / "reference.onnx", batch)
        found = run(tmp_path / "out.onnx", batch)
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(run(path, 3) - expected) > 1e-2 * np.linalg.norm(expected)


def with_matrices(made: onnx.ModelProto, artifact: Artifact) -> onnx.ModelProto:
    """Overwrite each stored weight, as the cases store it: E, or its transpose."""
    tensors = {each.name: each for each in made.graph.initializer}
    tensors |= {each.output[0]: each.attribute[0].t for each in made.graph.node if each.op_type == "Constant"}
    for body in (attribute.g for each in made.graph.node for attribute in each.attribute if attribute.HasField("g")):
        for each in body.initializer:
            tensors[f"{each.name}.2" if each.name in tensors else each.name] = each
    for layer in artifact.layers:
        stored, matrix = tensors[layer.name], layer.operator.to_dense().numpy()
        before = numpy_helper.to_array(stored)
        flat = before.reshape(before.shape[:2])
        if layer.name == "q":  # what was quantized becomes float, and its DequantizeLinear an Identity
            (dequantize,) = [each for each in made.graph.node if each.op_type == "DequantizeLinear"]
            dequantize.CopyFrom(node("Identity", ["q"], "w"))
            flat = WEIGHT.T
        (product,) = [p for p in (matrix, matrix.T) if p.shape == flat.shape and closer(p, flat, matrix)]
        stored.CopyFrom(numpy_helper.from_array(product.reshape(before.shape), stored.name))
    return made


def closer(candidate: np.ndarray, stored: np.ndarray, matrix: np.ndarray) -> bool:
    """Of a matrix and its transpose, the fit is nearer to the one that it was fitted to."""
    if matrix.shape[0] != matrix.shape[1]:
        return True
    other = candidate.T
    return float(np.linalg.norm(candidate - stored)) < float(np.linalg.norm(other - stored))


def test_everything_else_stays_as_it_was(tmp_path: Path) -> None:
    nodes = [
        node("Mul", ["x", "k"], "scaled"),
        node("MatMul", ["scaled", "w"], "product"),
        node("Tanh", ["product"], "bent"),
        helper.make_node("Add", ["bent", "b"], ["y"], name="last", doc_string="kept"),
    ]
    tensors = {"k": np.float32([3]), "w": WEIGHT.T.copy(), "b": np.ones(OUT, np.float32)}
    made = model(nodes, tensors, ["batch", "sequence", IN], producer_name="somebody", doc_string="about")
    made.metadata_props.add(key="character", value="abc")
    path, artifact = saved(made, tmp_path)
    export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=ExportSettings(Stages()))
    out = onnx.load(tmp_path / "out.onnx")
    kept = {each.name: each for each in out.graph.node}
    for each in (made.graph.node[0], made.graph.node[2], made.graph.node[3]):
        assert (list(kept[each.name].input), list(kept[each.name].output)) == (list(each.input), list(each.output))
    assert kept["last"].doc_string == "kept"
    assert {"k", "b"} < {each.name for each in out.graph.initializer}
    assert "w" not in {each.name for each in out.graph.initializer}
    assert out.graph.input == made.graph.input
    assert [(each.key, each.value) for each in out.metadata_props] == [("character", "abc")]
    assert (out.producer_name, out.doc_string) == ("somebody", "about")
    assert {each.domain: each.version for each in out.opset_import}[""] == 18


def test_a_half_precision_graph_that_says_no_shapes_is_understood(tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    nodes = [
        node("Cast", ["x"], "h", to=half),
        node("MatMul", ["h", "w"], "m"),
        node("Add", ["m", "b"], "a"),
        node("Relu", ["a"], "r"),
        node("MatMul", ["r", "v"], "n"),
        node("Cast", ["n"], to=TensorProto.FLOAT),
    ]
    second = np.random.default_rng(1).standard_normal((OUT, OUT)).astype(np.float16)
    tensors = {"w": WEIGHT.T.astype(np.float16), "v": second, "b": np.ones(OUT, np.float16)}
    path, artifact = saved(model(nodes, tensors, ["batch", "sequence", IN]), tmp_path)
    exported = export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=ExportSettings(Blocks()))
    assert len(exported.spliced.nodes) == 2
    out = onnx.load(exported.path)
    kinds = [each.op_type.rstrip("0123456789") for each in out.graph.node]
    assert (kinds.count("FeaturesFirst"), kinds.count("FeaturesLast")) == (1, 1)
    assert not {"h", "m", "a", "r", "n"} & {each.name for each in out.graph.value_info}


def test_external_data_is_read_and_what_leaves_the_folder_is_not(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    options = {"save_as_external_data": True, "location": "weights.bin", "size_threshold": 0}
    onnx.save(CASES["MatMul"](), inner / "model.onnx", **options)
    source = open_source(inner / "model.onnx")
    assert source.hashes().keys() == {"model.onnx", "weights.bin"}
    assert np.array_equal(source.read("w").numpy(), WEIGHT)
    escaping = onnx.load(inner / "model.onnx", load_external_data=False)
    (inner / "weights.bin").rename(tmp_path / "weights.bin")
    with pytest.raises(SourceError, match="is missing"):
        open_source(inner / "model.onnx")
    for entry in escaping.graph.initializer[0].external_data:
        entry.value = "../weights.bin" if entry.key == "location" else entry.value
    (inner / "escaping.onnx").write_bytes(escaping.SerializeToString())
    with pytest.raises(SourceError, match="outside its folder"):
        open_source(inner / "escaping.onnx")


def test_what_is_no_model_is_refused_with_a_line(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no protobuf")
    with pytest.raises(SourceError, match="is not a readable ONNX model"):
        open_source(tmp_path / "broken.onnx")
    onnx.save(model([node("Relu", ["x"])], {}, ["batch", IN]), tmp_path / "empty.onnx")
    with pytest.raises(SourceError, match="holds no tensors"):
        open_source(tmp_path / "empty.onnx")
