"""Floor 2: what is computed instead of a dense product, how it is fitted, and how it is written to ONNX."""

from spm_compress.forms.candidates import candidates
from spm_compress.forms.fit import FitResult, fit_matrices
from spm_compress.forms.form import Form, Operator, relative_error
from spm_compress.forms.registry import forms, read_form
from spm_compress.forms.settings import EFFORTS, FitSettings
from spm_compress.forms.stored import StoredOperator

__all__ = [
    "EFFORTS",
    "FitResult",
    "FitSettings",
    "Form",
    "Operator",
    "StoredOperator",
    "candidates",
    "fit_matrices",
    "forms",
    "read_form",
    "relative_error",
]
