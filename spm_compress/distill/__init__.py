"""Floor 6: teacher, student, recovery training."""

from spm_compress.distill.loop import Distilled, distill
from spm_compress.distill.recover import Recovered, recover
from spm_compress.distill.settings import DistillSettings, End, Loss, Rates, Trained, TrainingReport

__all__ = [
    "DistillSettings",
    "Distilled",
    "End",
    "Loss",
    "Rates",
    "Recovered",
    "Trained",
    "TrainingReport",
    "distill",
    "recover",
]
