"""A small sentence encoder as ONNX, written without the exporter, with what quantizers stumble over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS, WIDTH = 200, 64
INT, FLOAT = TensorProto.INT64, TensorProto.FLOAT


def sentence_graph(
    path: Path, *, output: str = "last_hidden_state", noise: float = 0.0, ids: str = "input_ids"
) -> Path:
    """Write table -> shared matrix, twice -> matrix in a Constant node; pooled by a Gemm. noise: relative, of weights.

    output: name of the features (batch, sequence, 64) that come first; "pooled" is the second, (batch, 48), "number"
    the third, (batch,). A Gather of indices and one of two rows stand beside that of the table.
    """
    draw, more = np.random.default_rng(0), np.random.default_rng(1)

    def weight(name: str, *shape: int) -> TensorProto:
        x = draw.standard_normal(shape) / np.sqrt(shape[0] if name != "words" else 1)
        x = x + noise * x.std() * more.standard_normal(shape)
        return numpy_helper.from_array(x.astype(np.float32), name)

    words, shared, last = weight("words", WORDS, WIDTH), weight("shared", WIDTH, WIDTH), weight("last", WIDTH, WIDTH)
    pool, kinds, to_one = weight("pool", 48, WIDTH), weight("kinds", 2, WIDTH), weight("to_one", 48, 1)
    at = numpy_helper.from_array(np.array([[0, 0, 1]], np.int64), "at")
    zero, axes = (numpy_helper.from_array(np.array([n], np.int64), name) for n, name in ((0, "zero"), (1, "axes")))
    nodes = [
        helper.make_node("Gather", ["words", ids], ["word"]),
        helper.make_node("Gather", ["at", "zero"], ["kind"], axis=1),
        helper.make_node("Gather", ["kinds", "kind"], ["kind_of"]),
        helper.make_node("Add", ["word", "kind_of"], ["x"]),
        helper.make_node("MatMul", ["x", "shared"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "shared"], ["c"]),
        helper.make_node("Constant", [], ["constant"], value=last),
        helper.make_node("MatMul", ["c", "constant"], [output]),
        helper.make_node("ReduceMean", [output, "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "pool"], ["pooled"], transB=1),
        helper.make_node("MatMul", ["pooled", "to_one"], ["column"]),
        helper.make_node("Squeeze", ["column", "axes"], ["number"]),
    ]
    graph = helper.make_graph(
        nodes,
        "sentences",
        [helper.make_tensor_value_info(ids, INT, ["batch", "sequence"])],
        [
            helper.make_tensor_value_info(output, FLOAT, ["batch", "sequence", WIDTH]),
            helper.make_tensor_value_info("pooled", FLOAT, ["batch", 48]),
            helper.make_tensor_value_info("number", FLOAT, ["batch"]),
        ],
        [words, shared, pool, kinds, to_one, at, zero, axes],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


def held_out(samples: int = 24, ids: str = "input_ids") -> list[dict[str, np.ndarray]]:
    """Return batches of 8 samples of 5 tokens, the last one or two of which are padding in every second sample."""
    draw = np.random.default_rng(2)
    tokens = draw.integers(0, WORDS, (samples, 5))
    mask = np.ones_like(tokens)
    mask[::2, 3:] = 0
    return [{ids: tokens[i : i + 8], "attention_mask": mask[i : i + 8]} for i in range(0, samples, 8)]
