"""Small ONNX models that hold their weights in awkward ways, and oracles that know nothing of the package's finders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.checkpoint import Artifact

__all__ = ["WIDTH", "draw", "fitted", "graph", "info", "matrices_in", "node", "overwrite", "relative_error", "run"]

WIDTH = 40


def draw(seed: int, *shape: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape or (WIDTH, WIDTH)) / 6).astype(np.float32)


def info(name: str, shape: Sequence[str | int] = ("batch", WIDTH), dtype: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def node(kind: str, inputs: Sequence[str], output: str = "y", domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, [output], domain=domain, **attributes)


def graph(
    nodes: Sequence[onnx.NodeProto],
    tensors: Mapping[str, np.ndarray],
    inputs: Sequence[Any] = (),
    outputs: Sequence[Any] = (),
    functions: Sequence[onnx.FunctionProto] = (),
    opset: int = 18,
    domains: Sequence[str] = ("mine",),
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    made = helper.make_graph(nodes, "g", inputs or [info("x")], outputs or [info("y")], initializers)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(each, 1) for each in domains)]
    return helper.make_model(made, opset_imports=imports, ir_version=8, functions=functions)


def fitted(made: onnx.ModelProto, folder: Path, *include: str, **options: Any) -> tuple[Path, Artifact]:
    path = folder / "model.onnx"
    onnx.save(made, path, **options)
    settings = CompressSettings(FitSettings(stages=2, steps=5, block=8), include=include)
    return path, fit_model(open_source(path), settings, beside=folder)


def tensors_in(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a model: in branches, functions, attributes."""
    for _, value in message.ListFields():
        for each in value if hasattr(value, "__len__") and not isinstance(value, (str, bytes)) else [value]:
            if isinstance(each, onnx.TensorProto):
                yield each
            elif isinstance(each, Message):
                yield from tensors_in(each)


def matrices_in(made: onnx.ModelProto) -> list[np.ndarray]:
    return [numpy_helper.to_array(each) for each in tensors_in(made) if len(each.dims) > 1]


def overwrite(made: onnx.ModelProto, weight: np.ndarray, matrix: np.ndarray) -> int:
    """Put one matrix in the place of another wherever it stands, either way around; return how often."""
    count = 0
    for each in tensors_in(made):
        for old, new in ((weight, matrix), (weight.T, matrix.T)):
            if tuple(each.dims) == old.shape and np.array_equal(numpy_helper.to_array(each), old):
                each.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(new.astype(old.dtype)), each.name))
                count += 1
                break
    return count


def run(made: onnx.ModelProto | Path, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    content = made if isinstance(made, Path) else made.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))
