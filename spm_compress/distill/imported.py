"""Whether an ONNX model or a program can be trained, and what was imported of it computes what it does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from spm_compress.calibration.onnx_runner import declared_dtype
from spm_compress.checkpoint.imported_model import ImportedModel
from spm_compress.checkpoint.imported_program import ImportedProgram
from spm_compress.checkpoint.modules import why_not_trainable
from spm_compress.checkpoint.onnx_source import OnnxSource
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.source import Source
from spm_compress.errors import SourceError, VerificationError, first_line
from spm_compress.export.verification import compare, run, session

__all__ = ["is_imported", "require_trainable", "require_true_import"]

# As of exported files: another order of sums is 1e-6 on PP-OCRv4, a wrong axis or attribute is far more. What has 16
# bits in the file has 32 in torch.
_TOLERANCE, _TOLERANCE_OF_HALVES = 1e-4, 2e-2

_Answers = Mapping[str, np.ndarray]


def is_imported(source: Source) -> bool:
    """Whether a source is a graph, which trains as what is imported of it."""
    return isinstance(source, (OnnxSource, ProgramSource))


def require_trainable(source: Source, fitted: Collection[str]) -> None:
    """Raise SourceError, saying why, for a graph whose fitted weights cannot be trained."""
    why = why_not_trainable(source, fitted)
    if why is not None:
        raise SourceError(f"{source.path}: cannot be trained, as {why}")


def require_true_import(model: ImportedModel, source: Source, batch: Mapping[str, Tensor]) -> None:
    """Compare an imported graph with what its own runtime answers to one batch; relative errors as in exports.

    That is ONNX Runtime, or torch.export's module. Raises SourceError where they differ by more than 1e-4 (2e-2 of a
    model with tensors of 16 bits), or one of the two does not run.
    """
    path = source.path
    is_half = any(info.dtype in ("F16", "BF16") for info in source.tensors().values())
    tolerance = _TOLERANCE_OF_HALVES if is_half else _TOLERANCE
    maker, runtime = model.importer or "torch", "torch.export" if isinstance(source, ProgramSource) else "ONNX Runtime"
    try:
        expected = _of_program(model, source, batch) if isinstance(source, ProgramSource) else _of_onnx(source, batch)
    except VerificationError as error:
        raise SourceError(f"{path}: does not run on the data ({first_line(error)})") from error
    try:
        with torch.no_grad():
            answer: Any = model(**batch)
    except Exception as error:  # what was made of an operator raises whatever torch does
        raise SourceError(
            f"{path}: cannot be trained, as what {maker} made of it does not run ({first_line(error)})"
        ) from error
    named = _leaves(answer) if isinstance(source, ProgramSource) else _numbers(answer)
    difference = compare({name: named[name] for name in expected}, expected)
    if not difference < tolerance:
        raise SourceError(
            f"{path}: cannot be trained, as what {maker} made of it differs from {runtime} by {difference:.1e} "
            f"(limit {tolerance:.0e})"
        )


def _of_onnx(source: Source, batch: Mapping[str, Tensor]) -> _Answers:
    runtime = session(source.path)
    types = {each.name: declared_dtype(each.type) for each in runtime.get_inputs()}
    return run(runtime, {name: batch[name].numpy().astype(dtype) for name, dtype in types.items()})


def _of_program(model: ImportedModel, source: ProgramSource, batch: Mapping[str, Tensor]) -> _Answers:
    """Return what the program itself answers, given inputs of its own dtypes. Raises VerificationError."""
    assert isinstance(model, ImportedProgram)
    program = source.program.module(check_guards=False)
    positional, named = model.arguments(batch, model.own)
    try:
        with torch.no_grad():
            return _leaves(program(*positional, **named))
    except Exception as error:  # a batch of sizes that the program was not exported for
        raise VerificationError(first_line(error)) from error


def _leaves(answer: Any) -> _Answers:
    leaves = [x for x in pytree.tree_leaves(answer) if isinstance(x, Tensor)]
    return _numbers({str(i): x for i, x in enumerate(leaves)})


def _numbers(answer: Mapping[str, Tensor]) -> _Answers:
    return {name: (x.float() if x.is_floating_point() else x).numpy() for name, x in answer.items()}
