"""Floor 4: a whole model, as files or as a live module."""

from spm_compress.compress.inspection import Inspection, inspect_model
from spm_compress.compress.model import CompressSettings, Progress, Silent, check_device, fit_model
from spm_compress.compress.module import Compressed, apply_artifact, compress_model

__all__ = [
    "CompressSettings",
    "Compressed",
    "Inspection",
    "Progress",
    "Silent",
    "apply_artifact",
    "check_device",
    "compress_model",
    "fit_model",
    "inspect_model",
]
