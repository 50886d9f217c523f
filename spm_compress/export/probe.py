"""A dense graph that runs with other matrices in the place of its weights: what would the model answer?

Each weight becomes an input with a default, which ONNX Runtime lets a caller override for one run, so that hundreds of
candidates are tried in one session.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from spm_compress.checkpoint.source import Source
from spm_compress.compress.job import digest
from spm_compress.errors import UsageError
from spm_compress.export.dense_graphs import dense_graphs
from spm_compress.export.reference import inline, stored_matrices
from spm_compress.export.saving import save
from spm_compress.export.verification import Outputs, run, session

__all__ = ["Probe", "open_probe"]


@dataclass(frozen=True)
class _Place:
    """Where a graph holds a weight: the name of the initializer, and how it lies there."""

    name: str
    is_transposed: bool
    shape: tuple[int, ...]
    dtype: np.dtype


@dataclass(frozen=True)
class Probe:
    """A session of the dense graph. places: digest of a weight -> where the graph holds it.

    float32: the dense graph as a file, which lives as long as the folder that it was made in.
    """

    runtime: onnxruntime.InferenceSession
    places: Mapping[str, Sequence[_Place]]
    float32: Path

    @property
    def inputs(self) -> list[str]:
        """Names of what the model takes."""
        return [each.name for each in self.runtime.get_inputs()]

    def bytes_of(self, sha256: str) -> int:
        """Return the bytes that a weight takes in the graph, 0 where it has no place of its own."""
        return sum(math.prod(place.shape) * place.dtype.itemsize for place in self.places.get(sha256, ()))

    def answers(self, inputs: Mapping[str, np.ndarray], matrices: Mapping[str, Tensor] | None = None) -> Outputs:
        """Return the outputs with other matrices (out, in), by the digest of the weight whose place they take.

        Raises VerificationError where the model does not run on the inputs.
        """
        fed = {name: inputs[name] for name in self.inputs if name in inputs}
        for sha256, matrix in (matrices or {}).items():
            for place in self.places.get(sha256, ()):
                laid = matrix.T if place.is_transposed else matrix
                fed[place.name] = np.ascontiguousarray(laid.numpy().reshape(place.shape).astype(place.dtype))
        return run(self.runtime, fed)


def open_probe(source: Source, weights: Mapping[str, tuple[int, int]], scratch: Path, threads: int = 0) -> Probe:
    """Open the dense graph of a source. weights: digest -> shape (out, in) of those that are going to be replaced.

    A weight in a loop or branch, or computed from others, has no place and keeps its values. Raises ExportError where
    no graph can be had, UsageError for a model of several graphs.
    """
    graphs = dense_graphs(source, None, "relu")
    if len(graphs) > 1:
        names = " and ".join(each.part or "one" for each in graphs)
        raise UsageError(f"{source.path}: is {len(graphs)} graphs ({names}), and one file is planned at a time")
    model = graphs[0].model
    inline(model)
    float32 = Path(tempfile.mkdtemp(dir=scratch)) / "float32.onnx"
    save(model, float32)
    shapes = {shape for pair in weights.values() for shape in (pair, pair[::-1])}
    own = {id(value) for value in model.graph.initializers.values()}
    places: dict[str, list[_Place]] = {}
    for value, array in list(stored_matrices(model)):
        flat = array.reshape(array.shape[:2]) if array.shape[2:] == (1,) * (array.ndim - 2) else array
        if id(value) not in own or flat.shape not in shapes or value.name is None:
            continue
        for is_transposed, matrix in ((False, flat), (True, flat.T)):
            sha256 = digest(torch.from_numpy(np.ascontiguousarray(matrix.astype(np.float32))))
            if weights.get(sha256) == matrix.shape:
                places.setdefault(sha256, []).append(_Place(value.name, is_transposed, array.shape, array.dtype))
                if not value.is_graph_input():
                    model.graph.inputs.append(value)
                break
    opened = session(save(model, float32.with_name("probe.onnx"), inside=False), threads, prepack=False)
    return Probe(opened, places, float32)
