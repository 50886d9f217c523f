"""Floor 4: a whole model, as files or as a live module."""

from spm_compress.compress.evaluation import Gate
from spm_compress.compress.executors import Executor, Here, Processes
from spm_compress.compress.expansion import Expanded, expand
from spm_compress.compress.inspection import Inspection, inspect_model
from spm_compress.compress.ledger import Ledger
from spm_compress.compress.live import load, load_model, refreshed, save, storable
from spm_compress.compress.model import Refit, Selected, check_device, fit_model, plan_model
from spm_compress.compress.module import apply_artifact
from spm_compress.compress.planned import Forecast
from spm_compress.compress.progress import Progress, Silent
from spm_compress.compress.ray_executor import OnRay
from spm_compress.compress.settings import (
    CompressSettings,
    LayerOverride,
    bits_said,
    parse_forms,
    parse_override,
    parse_store,
)

__all__ = [
    "CompressSettings",
    "Executor",
    "Expanded",
    "Forecast",
    "Gate",
    "Here",
    "Inspection",
    "LayerOverride",
    "Ledger",
    "OnRay",
    "Processes",
    "Progress",
    "Refit",
    "Selected",
    "Silent",
    "apply_artifact",
    "bits_said",
    "check_device",
    "expand",
    "fit_model",
    "inspect_model",
    "load",
    "load_model",
    "parse_forms",
    "parse_override",
    "parse_store",
    "plan_model",
    "refreshed",
    "save",
    "storable",
]
