"""What is said of every stored tensor of an ONNX graph: the reason is the true one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "export"))

from awkward_graphs import WIDTH, draw, graph, info, node

from spm_compress.checkpoint import open_source
from spm_compress.checkpoint.tensor_info import Role, TensorInfo

PRODUCT = node("MatMul", ["h", "v"])


def told(folder: Path, nodes: list[Any], tensors: dict[str, np.ndarray], **options: Any) -> dict[str, TensorInfo]:
    onnx.save(graph([*nodes, PRODUCT], {"v": draw(99), **tensors}, **options), folder / "m.onnx")
    return open_source(folder / "m.onnx").tensors()


BEHIND = {
    "a Reshape": (
        [node("Reshape", ["w", "shape"], "t")],
        {"w": draw(0, WIDTH, WIDTH, 1, 1), "shape": np.array([WIDTH] * 2)},
    ),
    "a Mul": ([node("Mul", ["w", "k"], "t")], {"w": draw(0), "k": np.float32(3)}),
    "a Concat": ([node("Concat", ["w", "u"], "t", axis=0)], {"w": draw(0, 8, WIDTH), "u": draw(1, 32, WIDTH)}),
}


@pytest.mark.parametrize("kind", BEHIND)
def test_a_weight_of_which_another_is_computed_is_multiplied_by(kind: str, tmp_path: Path) -> None:
    nodes, tensors = BEHIND[kind]
    found = told(tmp_path, [*nodes, node("MatMul", ["x", "t"], "h")], tensors)["w"]
    assert (found.role, found.use) == (Role.OTHER, f"multiplied by only after {kind}, which is not followed")


MICROSOFT = {"domain": "com.microsoft"}
OTHERS = {
    "added": ([node("Add", ["x", "w"], "h")], draw(0, 1, WIDTH), "the graph does not multiply by it (Add)"),
    "not used": ([node("Relu", ["x"], "h")], draw(0), "the graph does not use it"),
    "stack": (
        [node("MatMul", ["x", "w"], "h")],
        draw(0, 4, WIDTH, WIDTH),
        "a stack of matrices (a MatMul in batches), not one",
    ),
    "einsum": (
        [node("Einsum", ["x", "w"], "h", equation="bi,ij->bj")],
        draw(0),
        "multiplied by in an Einsum, which is not looked into",
    ),
    "fused": (
        [node("FusedMatMul", ["x", "w"], "h", **MICROSOFT)],
        draw(0),
        "a weight of a FusedMatMul node, which multiplies by it inside",
    ),
    "foreign": (
        [node("Thing", ["x", "w"], "h", "theirs")],
        draw(0),
        "read by a Thing node of domain theirs, which is not looked into",
    ),
    "looked up": ([node("Gather", ["w", "i"], "h")], draw(0), "a table: its rows are looked up (Gather)"),
    "vector": ([node("MatMul", ["x", "w"], "h")], draw(0, WIDTH), "a vector in a MatMul, no matrix"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_the_reason_is_what_the_graph_does(case: str, tmp_path: Path) -> None:
    nodes, weight, reason = OTHERS[case]
    found = told(tmp_path, nodes, {"w": weight, "i": np.array([1, 2])}, domains=["com.microsoft", "theirs"])
    assert found["w"].use == reason
    assert found["v"].role is Role.MAP


def test_of_two_constants_the_right_one_is_the_matrix(tmp_path: Path) -> None:
    found = told(
        tmp_path, [node("MatMul", ["w", "u"], "t"), node("MatMul", ["x", "t"], "h")], {"w": draw(0), "u": draw(1)}
    )
    assert found["u"].role is Role.MAP
    assert found["w"].use == "multiplied by another constant (MatMul)"


def test_a_recurrent_weight_and_a_scale_are_named(tmp_path: Path) -> None:
    nodes = [
        node("LSTM", ["s", "w", "r"], "", hidden_size=8),
        node("QuantizeLinear", ["x", "scale"], "q"),
        node("DequantizeLinear", ["q", "scale"], "h"),
    ]
    tensors = {"w": draw(0, 1, 32, WIDTH), "r": draw(1, 1, 32, 8), "scale": np.float32([0.1])}
    found = told(tmp_path, nodes, tensors, inputs=[info("x"), info("s", ["n", "b", WIDTH])])
    assert {found[name].use for name in "wr"} == {"a weight of an LSTM node, which multiplies by it inside"}
    assert found["scale"].use == "a scale or zero point of a QuantizeLinear node"


def test_what_else_a_fitted_weight_does_is_said(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "a"), node("ReduceSum", ["w"], "b", keepdims=0), node("Add", ["a", "b"], "h")]
    found = told(tmp_path, nodes, {"w": draw(0)}, outputs=[info("y"), info("w", [WIDTH, WIDTH])])
    assert (found["w"].role, found["w"].use) == (Role.MAP, "also read by ReduceSum, an output of the graph")


def test_a_table_that_is_a_head_too_is_a_table(tmp_path: Path) -> None:
    nodes = [node("Gather", ["w", "i"], "e"), node("MatMul", ["e", "w"], "h")]
    found = told(tmp_path, nodes, {"w": draw(0), "i": np.array([1])})
    assert (found["w"].role, found["w"].use) == (
        Role.TABLE,
        "a table whose rows are looked up, tied to a product with it",
    )
