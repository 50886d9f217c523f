"""What ONNX Runtime's tools make of a model: it is small, it runs, and what fails says why in a line."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from sentence_graph import held_out, sentence_graph

from spm_compress.errors import SpmError
from spm_compress.pipeline.baselines import BASELINES, write_baselines


def answers(path: Path) -> np.ndarray:
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(runtime.run(["pooled"], {"input_ids": held_out()[0]["input_ids"]})[0])


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("baselines")
    contenders, left_out = write_baselines(sentence_graph(folder / "float32.onnx"), folder / "into")
    assert left_out == ()
    assert all(each.kind == "baseline" for each in contenders)
    return {"float32": folder / "float32.onnx", **{each.name: each.path for each in contenders}}


def test_all_are_smaller_and_near_the_original(made: dict[str, Path]) -> None:
    known = answers(made["float32"])
    errors = {name: float(np.linalg.norm(answers(path) - known) / np.linalg.norm(known)) for name, path in made.items()}
    assert list(made) == ["float32", *BASELINES]
    assert 0 < errors["int8 per channel"] < 0.05
    assert errors["int8 per channel"] < errors["int4/32"] < errors["int4/128"] < 0.3
    sizes = {name: path.stat().st_size for name, path in made.items()}
    # The Constant node is out of reach of whoever does not fold it before: 16 kB of float32.
    assert sizes["int8"] > sizes["int8 per channel"] > sizes["int4/32"]
    # Table, matrices and Gemm take 91 kB in float32: at 4.6 bits or so a number all of them are in int4.
    assert sizes["int4/32"] < sizes["float32"] / 4


def test_int4_takes_products_gemms_and_the_table_and_nothing_else(made: dict[str, Path]) -> None:
    found = operators(made["int4/32"])
    assert found["MatMulNBits"] == 5
    assert found["MatMul"] == found["Gemm"] == 0
    assert found["GatherBlockQuantized"] == 1
    nodes = [node for node in onnx.load(made["int4/32"]).graph.node if node.op_type == "MatMulNBits"]
    given = [{each.name: each.i for each in node.attribute} for node in nodes]
    assert all((each["accuracy_level"], each["block_size"], each["bits"]) == (4, 32, 4) for each in given)
    names = [each.name for each in onnx.load(made["int4/32"]).graph.initializer]
    assert len(names) == len(set(names)), "the shared matrix is there once"


def test_making_int4_leaves_the_logging_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime.quantization.matmul_nbits_quantizer", raising=False)
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest has some, beside which the tool configures nothing
    monkeypatch.setattr(root, "level", logging.WARNING)
    BASELINES["int4/32"](sentence_graph(tmp_path / "m.onnx"), tmp_path / "int4.onnx")
    assert (root.handlers, root.level) == ([], logging.WARNING)


def test_what_cannot_be_made_says_why_in_a_line_and_the_others_are_there(tmp_path: Path) -> None:
    def broken(float32: Path, into: Path) -> None:
        raise AssertionError("two\nlines")

    def no_model(float32: Path, into: Path) -> None:
        into.write_bytes(b"no model")

    def larger(float32: Path, into: Path) -> None:
        into.write_bytes(float32.read_bytes())

    told: list[str] = []
    tools = {"broken": broken, "none": no_model, "larger": larger, "int8": BASELINES["int8"]}
    made, left_out = write_baselines(sentence_graph(tmp_path / "m.onnx"), tmp_path / "into", told.append, tools)
    assert [each.name for each in made] == ["int8"]
    assert [each.name for each in left_out] == ["broken", "none", "larger"]
    assert left_out[0].why == "ONNX Runtime's tool fails (AssertionError: two)"
    assert "is not a readable ONNX model" in left_out[1].why
    assert left_out[2].why == "ONNX Runtime's tool makes the file no smaller"
    assert f"broken: left out ({left_out[0].why})" in told


def test_a_model_without_a_matrix_has_no_int4(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    path = tmp_path / "relu.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    made, left_out = write_baselines(path, tmp_path / "into")
    assert made == ()
    assert left_out[2].why == "no product with a constant matrix and no table is in its graph"


def test_an_original_that_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(SpmError, match="is not a readable ONNX model"):
        write_baselines(tmp_path / "m.onnx", tmp_path / "into")
