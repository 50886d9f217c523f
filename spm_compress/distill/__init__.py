"""Floor 6: teacher, student, recovery training."""

from spm_compress.distill.loop import Distilled, distill
from spm_compress.distill.recover import Recovered, recover
from spm_compress.distill.settings import DistillSettings, Loss, Trained, TrainingReport

__all__ = ["DistillSettings", "Distilled", "Loss", "Recovered", "Trained", "TrainingReport", "distill", "recover"]
