"""Floor 2: one matrix, or a batch of one shape; tensors in, numbers out."""

from spm_compress.fitting.fit import fit_matrices, relative_error
from spm_compress.fitting.settings import EFFORTS, FitResult, FitSettings, StepReport
from spm_compress.fitting.truncated_svd import svd_error

__all__ = ["EFFORTS", "FitResult", "FitSettings", "StepReport", "fit_matrices", "relative_error", "svd_error"]
