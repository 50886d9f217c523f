"""spm-compress: replace dense weight matrices by Stagewise Pairwise Mixers.

Names are imported on first use (PEP 562): torch alone takes longer than the help of the command line may.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from spm_compress.version import __version__

_HOMES = {
    "Form": "spm_compress.forms",
    "Operator": "spm_compress.forms",
    "LowRank": "spm_compress.forms.low_rank",
    "Sum": "spm_compress.forms.sum",
    "Dense": "spm_compress.forms.dense",
    "Monarch": "spm_compress.forms.monarch",
    "Codec": "spm_compress.codecs",
    "SPM": "spm_compress.forms.spm",
    "SPMLinear": "spm_compress.layers",
    "FormLinear": "spm_compress.layers",
    "Mixer": "spm_compress.forms.spm",
    "Schedule": "spm_compress.forms.spm",
    "FitSettings": "spm_compress.forms",
    "fit_matrices": "spm_compress.forms",
    "open_source": "spm_compress.checkpoint",
    "read_artifact": "spm_compress.checkpoint",
    "write_artifact": "spm_compress.checkpoint",
    "CompressSettings": "spm_compress.compress",
    "compress_model": "spm_compress.pipeline",
    "fit_model": "spm_compress.compress",
    "apply_artifact": "spm_compress.compress",
    "load": "spm_compress.compress",
    "save": "spm_compress.compress",
    "expand": "spm_compress.compress",
    "DistillSettings": "spm_compress.distill",
    "recover": "spm_compress.distill",
    "summarize": "spm_compress.report",
    "ExportSettings": "spm_compress.export",
    "export_onnx": "spm_compress.export",
}

__all__ = [
    "SPM",
    "Codec",
    "CompressSettings",
    "Dense",
    "DistillSettings",
    "ExportSettings",
    "FitSettings",
    "Form",
    "FormLinear",
    "LowRank",
    "Mixer",
    "Monarch",
    "Operator",
    "SPMLinear",
    "Schedule",
    "Sum",
    "__version__",
    "apply_artifact",
    "compress_model",
    "expand",
    "export_onnx",
    "fit_matrices",
    "fit_model",
    "load",
    "open_source",
    "read_artifact",
    "recover",
    "save",
    "summarize",
    "write_artifact",
]

if TYPE_CHECKING:
    from spm_compress.checkpoint import open_source, read_artifact, write_artifact
    from spm_compress.codecs import Codec
    from spm_compress.compress import CompressSettings, apply_artifact, expand, fit_model, load, save
    from spm_compress.distill import DistillSettings, recover
    from spm_compress.export import ExportSettings, export_onnx
    from spm_compress.forms import FitSettings, Form, Operator, fit_matrices
    from spm_compress.forms.dense import Dense
    from spm_compress.forms.low_rank import LowRank
    from spm_compress.forms.monarch import Monarch
    from spm_compress.forms.spm import SPM, Mixer, Schedule
    from spm_compress.forms.sum import Sum
    from spm_compress.layers import FormLinear, SPMLinear
    from spm_compress.pipeline import compress_model
    from spm_compress.report import summarize


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'spm_compress' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
