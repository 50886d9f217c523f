"""Can what is about to be fitted be exported? Asked before the fit, where a graph is at hand."""

from __future__ import annotations

import onnxruntime

from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.source import Source
from spm_compress.errors import ExportError, SpmError
from spm_compress.export.graph import from_program
from spm_compress.export.splicing.splice import require_opset
from spm_compress.export.verification import session

__all__ = ["outlook"]


def outlook(source: Source) -> str | None:
    """Return why a program cannot be exported, None if it can or nothing is known; such a model can still be expanded.

    Raises ExportError for an ONNX model that could not be exported: an opset without the operators of stages, or
    operators and dtypes that none of the providers here can run.
    """
    if source.graph is not None:
        model = open_graph(source.graph)
        require_opset(model)
        _require_runnable(source)
        return None
    if isinstance(source, ProgramSource):
        try:
            from_program(source.program)
        except SpmError as error:
            return str(error)
    return None


def _require_runnable(source: Source) -> None:
    last: SpmError | None = None
    for provider in onnxruntime.get_available_providers():
        try:
            session(
                source.path.resolve(),
                provider=provider,
                level=onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
                prepack=False,
            )
        except SpmError as error:
            last = error
        else:
            return
    raise ExportError(f"{source.path}: could not be exported after a fit: {last}; make a graph that runs here first")
