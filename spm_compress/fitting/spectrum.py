"""Singular values of a batch of matrices, and what can be read from them at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.fitting.threads import one_thread

__all__ = ["Spectrum", "spectra"]

# The Gram matrix squares the singular values: below this share of the largest one, float64 holds rounding only.
_GRAM_ROUNDING = 1e-14
# Columns that stand in float64 at a time: all of a large weight would take more memory than a fit of it.
_COLUMNS = 1024


@dataclass(frozen=True)
class Spectrum:
    """The squared singular values of one matrix (m, n), as shares of their sum.

    shares: (min(m, n),) float64, largest first, sum 1, or all 0 for a zero matrix; norm: the Frobenius norm.
    """

    shape: tuple[int, int]
    norm: float
    shares: Tensor

    @property
    def root_mean_square(self) -> float:
        """Typical size of an entry."""
        return self.norm / math.sqrt(math.prod(self.shape))

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the shares: r for r equal singular values; 0 for a zero matrix.

        As Roy and Vetterli, "The effective rank" (EUSIPCO 2007), but of the squared singular values.
        """
        if not self.norm:
            return 0.0
        positive = self.shares[self.shares > 0]
        return math.exp(-float((positive * positive.log()).sum()))

    @property
    def decay(self) -> float:
        """The largest singular value over the median one: 1 for an orthogonal matrix, infinite for a low rank."""
        if not self.norm:
            return 1.0
        middle = float(self.shares[len(self.shares) // 2])
        return math.sqrt(float(self.shares[0]) / middle) if middle > _GRAM_ROUNDING * self.shares[0] else math.inf

    def energy(self, share: float) -> float:
        """Return what the first `share` of the singular values hold of the squared norm, at least one of them."""
        return float(self.shares[: max(1, round(share * len(self.shares)))].sum())

    def rank(self, epsilon: float) -> int:
        """Return how many singular values stand above the rounding of entries with machine epsilon `epsilon`.

        The threshold is numpy.linalg.matrix_rank's: max(m, n) * epsilon times the largest.
        """
        least = max((max(self.shape) * epsilon) ** 2, _GRAM_ROUNDING) * float(self.shares[0])
        return int((self.shares > least).sum())

    def svd_error(self, numbers: float) -> float:
        """Return the relative Frobenius error of the best low-rank map of `numbers` stored numbers.

        Rank r stores r * (m + n) numbers; between two ranks the squared error is interpolated, so that
        neither side gains from rounding. Eckart and Young (1936).
        """
        rank = numbers / sum(self.shape)
        whole = min(math.floor(rank), len(self.shares))
        left = float(self.shares[whole:].sum())
        part = (rank - whole) * float(self.shares[whole]) if whole < len(self.shares) else 0.0
        return math.sqrt(max(0.0, left - part))


def spectra(weights: Tensor) -> list[Spectrum]:
    """Return the spectrum of each of weights (k, m, n), any floating dtype, in float64 from the smaller Gram matrix.

    Raises FitError if a weight holds NaN or infinity, or the batch is not three-dimensional.
    """
    if weights.dim() != 3 or not weights.numel():
        raise FitError(f"a batch of weights has shape (k, out_features, in_features), not {tuple(weights.shape)}")
    if not bool(weights.isfinite().all()):
        raise FitError("the weight holds NaN or infinite values; repair the model or exclude the layer")
    m, n = weights.shape[1], weights.shape[2]
    wide = weights if m <= n else weights.mT
    largest = torch.linalg.vector_norm(weights, math.inf, dim=(1, 2)).double()
    # Entries near the ends of float64 would leave its range when squared.
    scale = torch.where(largest > 0, largest, 1)[:, None, None]
    gram = torch.zeros(len(weights), min(m, n), min(m, n), dtype=torch.float64, device=weights.device)
    for part in torch.split(wide, _COLUMNS, -1):
        scaled = part.double() / scale
        gram += scaled @ scaled.mT
    with one_thread():
        energies = torch.linalg.eigvalsh(gram).clamp(min=0).flip(-1)  # (k, min(m, n))
    totals = energies.sum(-1)
    shares = energies / torch.where(totals > 0, totals, 1)[:, None]
    norms = (largest * totals.sqrt()).tolist()
    return [Spectrum((m, n), norm, each) for norm, each in zip(norms, shares, strict=True)]
