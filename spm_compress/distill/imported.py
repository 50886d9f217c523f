"""Whether an ONNX model can be trained, and what was imported of it computes what ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from spm_compress.calibration.onnx_runner import declared_dtype
from spm_compress.checkpoint.imported_graph import ImportedGraph, importer, why_not_imported
from spm_compress.checkpoint.onnx_source import OnnxSource
from spm_compress.errors import SourceError, VerificationError, first_line
from spm_compress.export.verification import compare, run, session

__all__ = ["require_trainable", "require_true_import"]

# As of exported files: another order of sums is 1e-6 on PP-OCRv4, a wrong axis or attribute is far more.
_TOLERANCE = 1e-4


def require_trainable(source: OnnxSource, fitted: Collection[str]) -> None:
    """Raise SourceError, saying why, for a model whose fitted weights cannot be trained."""
    why = why_not_imported(source, fitted)
    if why is not None:
        raise SourceError(f"{source.path}: cannot be trained, as {why}")


def require_true_import(model: ImportedGraph, path: Path, batch: Mapping[str, Tensor]) -> None:
    """Compare an imported graph with ONNX Runtime's answers to one batch of the data; relative errors as in exports.

    Raises SourceError where they differ by more than 1e-4, or one of the two does not run.
    """
    try:
        runtime = session(path)
        types = {each.name: declared_dtype(each.type) for each in runtime.get_inputs()}
        expected = run(runtime, {name: batch[name].numpy().astype(dtype) for name, dtype in types.items()})
    except VerificationError as error:
        raise SourceError(f"{path}: does not run on the data ({first_line(error)})") from error
    try:
        with torch.no_grad():
            found = model(**batch)
    except Exception as error:  # what onnx2fx made of an operator raises whatever torch does
        raise SourceError(
            f"{path}: cannot be trained, as what {importer()} made of it does not run ({first_line(error)})"
        ) from error
    difference = compare({name: found[name].numpy() for name in expected}, expected)
    if not difference < _TOLERANCE:
        raise SourceError(
            f"{path}: cannot be trained, as what {importer()} made of it differs from ONNX Runtime by {difference:.1e} "
            f"(limit {_TOLERANCE:.0e})"
        )
