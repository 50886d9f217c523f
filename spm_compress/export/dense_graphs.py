"""The dense graphs of a model, whatever it was opened from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from spm_compress.checkpoint.module_source import BuiltSource
from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.retrained_graph import put_back
from spm_compress.checkpoint.source import Source
from spm_compress.errors import ExportError
from spm_compress.export.graph import WAYS, DenseGraph, from_built, from_chain, from_program
from spm_compress.export.huggingface_graphs import from_huggingface

__all__ = ["dense_graphs"]


def dense_graphs(
    source: Source | None,
    graph: Path | None,
    activation: str,
    changed: Mapping[str, Tensor] | None = None,
    *,
    with_past: bool = False,
) -> list[DenseGraph]:
    """Return the graph that is given, or that of the source, or the encoder's and the decoder's.

    activation: between the layers of weights that are no more than that; changed: tensors that have other values than
    the source's; with_past: as in `from_huggingface`. Raises ExportError where no graph can be had.
    """
    if with_past and (graph is not None or source is None or source.config is None or source.graph is not None):
        raise ExportError("a key-value cache is made for Hugging Face folders only; leave `with_past` out")
    if graph is not None:
        return [DenseGraph(open_graph(graph))]
    if source is None:
        raise ExportError(f"there is no graph to put the layers into; {WAYS}")
    if source.graph is not None:
        model = open_graph(source.graph)
        put_back(model, changed or {})
        return [DenseGraph(model)]
    if isinstance(source, ProgramSource):
        return [DenseGraph(from_program(source.program, changed))]
    if isinstance(source, BuiltSource):
        return [from_built(source, changed)]
    if source.config is not None:
        return from_huggingface(source, changed, with_past=with_past)
    return [from_chain(source, activation)]
