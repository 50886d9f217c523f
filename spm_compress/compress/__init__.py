"""Floor 4: a whole model, as files or as a live module."""

from spm_compress.compress.evaluation import Gate, named_function
from spm_compress.compress.inspection import Inspection, inspect_model
from spm_compress.compress.layers import Progress, Silent
from spm_compress.compress.model import Selected, check_device, fit_model, plan_model
from spm_compress.compress.module import Compressed, apply_artifact, compress_model, load_model
from spm_compress.compress.planned import Forecast
from spm_compress.compress.settings import CompressSettings, LayerOverride, parse_override

__all__ = [
    "CompressSettings",
    "Compressed",
    "Forecast",
    "Gate",
    "Inspection",
    "LayerOverride",
    "Progress",
    "Selected",
    "Silent",
    "apply_artifact",
    "check_device",
    "compress_model",
    "fit_model",
    "inspect_model",
    "load_model",
    "named_function",
    "parse_override",
    "plan_model",
]
