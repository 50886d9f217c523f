"""Floor 7: a model from its dense weights to what is shipped, in one call."""

from spm_compress.pipeline.baselines import BASELINES, write_baselines
from spm_compress.pipeline.frontier import FrontierSettings, frontier_json, measure_frontier
from spm_compress.pipeline.live_model import Compressed, compress_model
from spm_compress.pipeline.standing import Contender, Frontier, LeftOut, Standing

__all__ = [
    "BASELINES",
    "Compressed",
    "Contender",
    "Frontier",
    "FrontierSettings",
    "LeftOut",
    "Standing",
    "compress_model",
    "frontier_json",
    "measure_frontier",
    "write_baselines",
]
