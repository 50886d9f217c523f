"""Floor 8: a model from its dense weights to what is shipped, in one call."""

from spm_compress.pipeline.candidates import PlanSettings
from spm_compress.pipeline.compression import Compression, compress
from spm_compress.pipeline.live_model import Compressed, compress_model
from spm_compress.pipeline.planner import Plan
from spm_compress.pipeline.targets import Targets, parse_bytes, parse_seconds

__all__ = [
    "Compressed",
    "Compression",
    "Plan",
    "PlanSettings",
    "Targets",
    "compress",
    "compress_model",
    "parse_bytes",
    "parse_seconds",
]
