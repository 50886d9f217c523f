"""Floor 5: from an artifact to an ONNX file that is known to compute the same."""

from spm_compress.export.files import Exported, export_layers, export_onnx, first_batch
from spm_compress.export.huggingface_graphs import generates, has_past
from spm_compress.export.ort_format import OrtFiles, check_ort_path, ort_beside, write_ort
from spm_compress.export.outlook import outlook
from spm_compress.export.settings import ExportSettings, Precision, Weights
from spm_compress.forms.lowering import Layout

__all__ = [
    "ExportSettings",
    "Exported",
    "Layout",
    "OrtFiles",
    "Precision",
    "Weights",
    "check_ort_path",
    "export_layers",
    "export_onnx",
    "first_batch",
    "generates",
    "has_past",
    "ort_beside",
    "outlook",
    "write_ort",
]
