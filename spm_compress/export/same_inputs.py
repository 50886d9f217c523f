"""A model's file and the one that it is compared with: what they are fed, and what is said when that fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime

from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.errors import SpmError, VerificationError
from spm_compress.export.trials import Trial, find_trial
from spm_compress.export.verification import Outputs, run, session

__all__ = ["open_alike", "open_file", "run_file", "sizes", "trial_of"]

# name -> dtype and dimensions, None for a dynamic one
_Inputs = dict[str, tuple[str, tuple[int | None, ...]]]


def open_alike(paths: Sequence[Path]) -> ir.Model:
    """Return the first file's graph. Raises VerificationError if the inputs of another differ, SourceError."""
    graphs = [open_graph(path) for path in paths]
    for path, graph in zip(paths[1:], graphs[1:], strict=True):
        _require_same_inputs((paths[0], path), (_inputs(graphs[0]), _inputs(graph)))
    return graphs[0]


def sizes(
    graph: ir.Model, batches: tuple[int, ...], sequences: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Return the sizes that a graph can be run at: its own where an axis is fixed, None for no other axis."""
    shapes = [dims for _, dims in _inputs(graph).values()]
    fixed = next((dims[0] for dims in shapes if dims and dims[0]), 1)
    has_batch, has_others = any(None in dims[:1] for dims in shapes), any(None in dims[1:] for dims in shapes)
    return batches if has_batch else (fixed,), sequences if has_others else (None,)


def open_file(path: Path, threads: int, provider: str) -> onnxruntime.InferenceSession:
    """Open a session. Raises VerificationError that names the file."""
    try:
        return session(path.resolve(), threads, provider)
    except SpmError as error:
        raise VerificationError(f"{path}: {error}; export it again") from error


def run_file(path: Path, runtime: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> Outputs:
    """Run a session. Raises VerificationError that names the file and the shapes."""
    try:
        return run(runtime, inputs)
    except SpmError as error:
        shapes = ", ".join(f"{name} {list(np.shape(array))}" for name, array in inputs.items())
        raise VerificationError(
            f"{path}: {error} on {shapes}; choose other sizes with `batches`, `sequences`"
        ) from error


def trial_of(path: Path, runtime: onnxruntime.InferenceSession, graph: ir.Model, batch: int, size: int) -> Trial:
    """Return inputs that a file can take at these sizes. Raises VerificationError that names file and shapes."""
    try:
        return find_trial(runtime, graph, batch, [size])
    except VerificationError:
        trial = Trial(size)
        run_file(path, runtime, trial.inputs(graph, batch, seed=0))
        return trial


def _inputs(graph: ir.Model) -> _Inputs:
    found: _Inputs = {}
    for value in graph.graph.inputs:
        if value.name is not None and value.name not in graph.graph.initializers:
            dims = tuple(dim if isinstance(dim, int) and dim > 0 else None for dim in value.shape or ())
            found[value.name] = (str(value.dtype or ir.DataType.FLOAT), dims)
    return found


def _require_same_inputs(paths: Sequence[Path], inputs: Sequence[_Inputs]) -> None:
    (model, against), (found, other) = paths, inputs
    if set(found) != set(other):
        raise VerificationError(
            f"{model} takes {', '.join(found)}, but {against} takes {', '.join(other)}; "
            "only models with the same inputs can be compared"
        )
    for name in found:
        if found[name] != other[name]:
            raise VerificationError(
                f"input {name} is {_text(*found[name])} in {model}, but {_text(*other[name])} in {against}; "
                "only models with the same inputs can be compared"
            )


def _text(dtype: str, dims: Sequence[int | None]) -> str:
    return f"{dtype.lower()} [{', '.join('?' if dim is None else str(dim) for dim in dims)}]"
