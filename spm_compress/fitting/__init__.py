"""Floor 1: what a fit minimizes and how, for any form: least squares on a matrix, or a batch of one shape."""

from spm_compress.fitting.settings import StepReport
from spm_compress.fitting.truncated_svd import svd_error

__all__ = ["StepReport", "svd_error"]
