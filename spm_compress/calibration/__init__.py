"""Floor 3: what the inputs of a model's layers look like on real data."""

from spm_compress.calibration.collect import collect, load_or_collect, paired_moments
from spm_compress.calibration.moments import Moments, PairedMoments
from spm_compress.calibration.runner import Runner, open_runner

__all__ = ["Moments", "PairedMoments", "Runner", "collect", "load_or_collect", "open_runner", "paired_moments"]
