"""Small ONNX models made by hand: what exporters write, in the ways that they write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["branches", "classifier", "convolutions", "in_float16", "with_operator"]

_FLOAT = TensorProto.FLOAT


def _drawn(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return (draw.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def _save(
    path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], x: list[int | str], y: list[int | str]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", _FLOAT, x)],
        [helper.make_tensor_value_info("y", _FLOAT, y)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def classifier(path: Path) -> Path:
    """Write a model of (batch, 64): MatMul and Add, a norm, Gemm, and a head in a Constant node before a Softmax."""
    draw = np.random.default_rng(0)
    head = numpy_helper.from_array(3 * _drawn(draw, 96, 10))
    nodes = [
        helper.make_node("MatMul", ["x", "first/weight"], ["a"]),
        helper.make_node("Add", ["a", "first/bias"], ["b"]),
        helper.make_node("LayerNormalization", ["b", "norm.weight", "norm.bias"], ["c"], axis=-1),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "second.weight", "second.bias"], ["e"], transB=1),
        helper.make_node("Tanh", ["e"], ["f"]),
        helper.make_node("Constant", [], ["head"], value=head),
        helper.make_node("MatMul", ["f", "head"], ["g"]),
        helper.make_node("Softmax", ["g"], ["y"], axis=-1),
    ]
    tensors = {
        "first/weight": _drawn(draw, 64, 96),
        "first/bias": 0.1 * _drawn(draw, 96),
        "norm.weight": 1 + 0.1 * _drawn(draw, 96),
        "norm.bias": 0.1 * _drawn(draw, 96),
        "second.weight": _drawn(draw, 96, 96),
        "second.bias": 0.1 * _drawn(draw, 96),
    }
    return _save(path, nodes, tensors, ["batch", 64], ["batch", 10])


def convolutions(path: Path) -> Path:
    """Write a model of (batch, 32, 6, 6): convolutions, a norm, E on the left, a kernel used twice."""
    draw = np.random.default_rng(1)
    nodes = [
        helper.make_node("Conv", ["x", "depth"], ["a"], group=32, pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "variance"], ["b"]),
        helper.make_node("Conv", ["b", "point", "point.bias"], ["c"]),
        helper.make_node("HardSwish", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "twice"], ["e"]),
        helper.make_node("Conv", ["e", "twice"], ["f"], strides=[2, 2]),
        helper.make_node("MatMul", ["left", "f"], ["g"]),
        helper.make_node("Pow", ["g", "exponents"], ["h"]),
        helper.make_node("Identity", ["h"], ["y"]),
    ]
    tensors = {
        "depth": _drawn(draw, 32, 1, 3, 3),
        "scale": 1 + 0.1 * _drawn(draw, 32),
        "shift": 0.1 * _drawn(draw, 32),
        "mean": 0.1 * _drawn(draw, 32),
        "variance": 1 + 0.1 * np.abs(_drawn(draw, 32)),
        "point": _drawn(draw, 64, 32, 1, 1),
        "point.bias": 0.1 * _drawn(draw, 64),
        "twice": _drawn(draw, 64, 64, 1, 1),
        "left": _drawn(draw, 5, 3),
        "exponents": np.array([2.0, 2.0, 2.0], np.float32),
    }
    return _save(path, nodes, tensors, ["batch", 32, 6, 6], ["batch", 64, 5, 3])


def branches(path: Path) -> Path:
    """Write a model of (batch, 32) that multiplies by `outside`, then in each branch of an If by `inside`."""
    draw = np.random.default_rng(3)
    found = helper.make_tensor_value_info("found", _FLOAT, ["batch", 32])
    body = helper.make_graph(
        [helper.make_node("MatMul", ["a", "inside"], ["found"])],
        "then",
        [],
        [found],
        [numpy_helper.from_array(_drawn(draw, 32, 32), "inside")],
    )
    other = helper.make_graph([helper.make_node("Neg", ["a"], ["found"])], "else", [], [found])
    nodes = [
        helper.make_node("MatMul", ["x", "outside"], ["a"]),
        helper.make_node("ReduceSum", ["a"], ["sum"], keepdims=0),
        helper.make_node("Cast", ["sum"], ["condition"], to=TensorProto.BOOL),
        helper.make_node("If", ["condition"], ["y"], then_branch=body, else_branch=other),
    ]
    return _save(path, nodes, {"outside": _drawn(draw, 32, 32)}, ["batch", 32], ["batch", 32])


def in_float16(path: Path, out: Path) -> Path:
    """Write a model with all its tensors, inputs and outputs in float16."""
    model = onnx.load(path)
    constants = (each.t for node in model.graph.node for each in node.attribute if each.name == "value")
    for tensor in (*model.graph.initializer, *constants):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, out)
    return out


def with_operator(path: Path, operator: str, domain: str = "com.microsoft") -> Path:
    """Write a product of (batch, 32) and another operator on it."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["a"]),
        helper.make_node(operator, ["a"], ["y"], domain=domain),
    ]
    return _save(path, nodes, {"weight": _drawn(np.random.default_rng(2), 32, 32)}, ["batch", 32], ["batch", 32])
