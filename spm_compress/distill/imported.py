"""Whether an ONNX model can be trained, and what was imported of it computes what ONNX Runtime does."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from spm_compress.calibration.onnx_runner import declared_dtype
from spm_compress.checkpoint.imported_graph import ImportedGraph, importer, why_not_imported
from spm_compress.checkpoint.onnx_source import OnnxSource
from spm_compress.errors import SourceError, VerificationError, first_line
from spm_compress.export.verification import compare, run, session

__all__ = ["require_trainable", "require_true_import"]

# As of exported files: another order of sums is 1e-6 on PP-OCRv4, a wrong axis or attribute is far more. What has 16
# bits in the file has 32 in torch.
_TOLERANCE, _TOLERANCE_OF_HALVES = 1e-4, 2e-2


def require_trainable(source: OnnxSource, fitted: Collection[str]) -> None:
    """Raise SourceError, saying why, for a model whose fitted weights cannot be trained."""
    why = why_not_imported(source, fitted)
    if why is not None:
        raise SourceError(f"{source.path}: cannot be trained, as {why}")


def require_true_import(model: ImportedGraph, source: OnnxSource, batch: Mapping[str, Tensor]) -> None:
    """Compare an imported graph with ONNX Runtime's answers to one batch of the data; relative errors as in exports.

    Raises SourceError where they differ by more than 1e-4 (2e-2 of a model with tensors of 16 bits), or one of the two
    does not run.
    """
    path = source.path
    is_half = any(info.dtype in ("F16", "BF16") for info in source.tensors().values())
    tolerance = _TOLERANCE_OF_HALVES if is_half else _TOLERANCE
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
    if not difference < tolerance:
        raise SourceError(
            f"{path}: cannot be trained, as what {importer()} made of it differs from ONNX Runtime by {difference:.1e} "
            f"(limit {tolerance:.0e})"
        )
