"""ONNX models on disk; more than one protobuf can hold goes into a file of data beside the model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir

__all__ = ["LIMIT", "save", "size_of"]

# What one protobuf message can hold, less room for the graph itself.
LIMIT = 2**31 - 2**26
_SMALL = 1024  # bytes; such tensors stay in the graph, where tools can see them


def save(model: ir.Model, path: Path, *, inside: bool = True) -> Path:
    """Write a model; from 2 GB of tensors on, they go to NAME.<digest>.data beside it. Returns the path.

    The digest is that of the tensors, so that a model never meets the data of another one. inside: whether smaller
    models hold their tensors, which takes several times their memory for a moment.
    """
    if not inside:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_SMALL, max_workers=1)
        return path
    tensors = [value.const_value for graph in _graphs(model) for value in graph.initializers.values()]
    if sum(tensor.nbytes for tensor in tensors if tensor is not None) < LIMIT:
        path.write_bytes(ir.serde.serialize_model(model).SerializeToString(deterministic=True))
        return path
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor is not None:
            digest.update(tensor.tobytes())
    data = f"{path.stem}.{digest.hexdigest()[:12]}.data"
    ir.save(model, path, external_data=data, size_threshold_bytes=_SMALL, max_workers=1)
    return path


def size_of(path: Path) -> int:
    """Return the bytes of a model and of the files of data that it names."""
    model = ir.load(path)
    data = {
        Path(value.const_value.path)
        for graph in _graphs(model)
        for value in graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    return sum(file.stat().st_size for file in (path, *data))


def _graphs(model: ir.Model) -> list[ir.Graph]:
    return list(model.graphs())
