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
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from spm_compress.checkpoint.source import Source
from spm_compress.compress.job import digest
from spm_compress.errors import UsageError
from spm_compress.export.dense_graphs import dense_graphs
from spm_compress.export.reference import correct_products, inline, stored_matrices
from spm_compress.export.saving import save
from spm_compress.export.verification import Outputs, run, session

__all__ = ["Probe", "Replacement", "open_probe"]


@dataclass(frozen=True)
class Replacement:
    """What takes a weight's place: a matrix (out, in), and (out,) what the products with it are raised by."""

    matrix: Tensor
    correction: Tensor | None = None


@dataclass(frozen=True)
class _Input:
    """An initializer that can be overridden."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def holding(self, x: Tensor) -> np.ndarray:
        return np.ascontiguousarray(x.numpy().reshape(self.shape).astype(self.dtype))


@dataclass(frozen=True)
class _Place:
    """Where a graph holds a weight, how it lies there, and what is added behind its products."""

    weight: _Input
    is_transposed: bool
    corrections: tuple[_Input, ...]


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
        held = [place.weight for place in self.places.get(sha256, ())]
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in held)

    def answers(self, inputs: Mapping[str, np.ndarray], replaced: Mapping[str, Replacement] | None = None) -> Outputs:
        """Return the outputs with replacements, by the digests of the weights whose places they take.

        Raises VerificationError where the model does not run on the inputs.
        """
        fed = {name: inputs[name] for name in self.inputs if name in inputs}
        for sha256, each in (replaced or {}).items():
            for place in self.places.get(sha256, ()):
                fed[place.weight.name] = place.weight.holding(each.matrix.T if place.is_transposed else each.matrix)
                if each.correction is not None:
                    fed.update({held.name: held.holding(each.correction) for held in place.corrections})
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
                nothing = np.zeros(matrix.shape[0])
                corrections = correct_products(model, value, is_transposed, value.name, nothing)
                held = [_as_input(model, each) for each in (value, *corrections)]
                places.setdefault(sha256, []).append(_Place(held[0], is_transposed, tuple(held[1:])))
                break
    opened = session(save(model, float32.with_name("probe.onnx"), inside=False), threads, prepack=False)
    return Probe(opened, places, float32)


def _as_input(model: ir.Model, value: ir.Value) -> _Input:
    if not value.is_graph_input():
        model.graph.inputs.append(value)
    tensor = value.const_value
    assert tensor is not None and value.name is not None
    return _Input(value.name, tuple(tensor.shape.numpy()), tensor.dtype.numpy())
