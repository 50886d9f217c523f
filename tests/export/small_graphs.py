"""Small ONNX models, written without the exporter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def product(path: Path, *, x: str = "x", dims: Sequence[str | int] = ("batch", 96), data: str | None = None) -> Path:
    """Write y = x W with W (96, 64); data: the file beside it that keeps W."""
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", [x, "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*dims[:-1], 64])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if data is None:
        onnx.save(model, path)
    else:
        onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def lookup(path: Path, *, positions: int = 32) -> Path:
    """Write a lookup of tokens (batch, sequence) that has a limited number of positions."""
    draw = np.random.default_rng(0)
    words = numpy_helper.from_array(draw.standard_normal((50, 16)).astype(np.float32), "words")
    places = numpy_helper.from_array(draw.standard_normal((positions, 16)).astype(np.float32), "places")
    zero, one = (numpy_helper.from_array(np.array(n, np.int64), name) for n, name in ((0, "zero"), (1, "one")))
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Gather", ["shape", "one"], ["length"]),
        helper.make_node("Range", ["zero", "length", "one"], ["range"]),
        helper.make_node("Gather", ["places", "range"], ["place"]),
        helper.make_node("Add", ["word", "place"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", 16])],
        [words, places, zero, one],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path
