"""The alternative that every fit is shown beside: a truncated SVD of the same size."""

from __future__ import annotations

from torch import Tensor

from spm_compress.fitting.spectrum import spectra

__all__ = ["svd_error"]


def svd_error(weight: Tensor, numbers: float) -> float:
    """Return the relative Frobenius error of the best low-rank map of `numbers` stored numbers.

    weight: (m, n). How ranks are counted: `Spectrum.svd_error`. Raises FitError for NaN or infinite values.
    """
    return spectra(weight[None])[0].svd_error(numbers)
