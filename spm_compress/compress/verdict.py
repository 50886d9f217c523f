"""One line in plain words for a weight that has been looked at."""

from __future__ import annotations

from collections.abc import Sequence

from spm_compress.fitting.spectrum import Spectrum
from spm_compress.forms.spm.closed_form import ClosedForm

__all__ = ["verdict"]

# Entries this small add nothing to activations of ordinary size.
_NEAR_ZERO = 1e-8
# An error of the closed form that says that the weight is such a chain.
_EXACT = 1e-4
# Energy that the largest size has to keep for the spectrum to count as one that decays fast.
_MOST, _SOME = 0.9, 0.5


def verdict(spectrum: Spectrum, rank: int, svd: Sequence[tuple[float, float]], closed_form: ClosedForm | None) -> str:
    """Say what to expect. svd: (share of the bytes, error of the truncated SVD) by size, smallest first.

    The first of these that holds: zero; near zero; low rank; a butterfly; SVD below the bound; how fast it decays.
    """
    m, n = spectrum.shape
    if not spectrum.norm:
        return "all zeros: nothing to keep"
    if spectrum.root_mean_square < _NEAR_ZERO:
        return f"near zero: the root mean square of its entries is {spectrum.root_mean_square:.1e}"
    largest = svd[-1][0]
    if rank * (m + n) <= largest * m * n or (rank == 1 and m + n < m * n):
        return f"already low rank: rank {rank} holds everything, in {rank * (m + n) / (m * n):.2%} of the numbers"
    if closed_form and closed_form.error < _EXACT:
        return (
            f"a butterfly of {closed_form.stages} stages holds everything, "
            f"in {closed_form.numbers / (m * n):.2%} of the numbers"
        )
    share, error = svd[0]
    kept_most = 1 - svd[-1][1] ** 2
    if kept_most > _MOST:
        return f"spectrum decays fast: a truncated SVD is the better choice ({_energy(*svd[-1])})"
    if closed_form and spectrum.svd_error(closed_form.numbers) < closed_form.bound:
        return (
            f"a truncated SVD beats every butterfly of its size (error {spectrum.svd_error(closed_form.numbers):.2f}, "
            f"bound {closed_form.bound:.2f}); {_energy(share, error)}; expect to need distillation"
        )
    if kept_most > _SOME:
        return f"spectrum decays: {_energy(share, error)}, {_energy(*svd[-1])}; expect to need distillation"
    return f"flat spectrum: {_energy(share, error)}; expect to need distillation"


def _energy(share: float, error: float) -> str:
    return f"{share:.0%} of the bytes keeps {1 - error**2:.0%} of the energy"
