"""Floor 8: a model from its dense weights to what is shipped, in one call."""

from spm_compress.pipeline.baselines import BASELINES, write_baselines
from spm_compress.pipeline.candidates import PlanSettings
from spm_compress.pipeline.compression import Compression, compress
from spm_compress.pipeline.frontier import FrontierSettings, frontier_json, measure_frontier
from spm_compress.pipeline.live_model import Compressed, compress_model
from spm_compress.pipeline.planner import Plan
from spm_compress.pipeline.standing import Contender, Frontier, LeftOut, Standing
from spm_compress.pipeline.targets import Targets, parse_bytes, parse_seconds

__all__ = [
    "BASELINES",
    "Compressed",
    "Compression",
    "Contender",
    "Frontier",
    "FrontierSettings",
    "LeftOut",
    "Plan",
    "PlanSettings",
    "Standing",
    "Targets",
    "compress",
    "compress_model",
    "frontier_json",
    "measure_frontier",
    "parse_bytes",
    "parse_seconds",
    "write_baselines",
]
