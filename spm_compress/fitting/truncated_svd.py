"""The alternative that every fit is shown beside: a truncated SVD of the same size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["svd_error"]


def svd_error(weight: Tensor, numbers: int) -> float:
    """Return the relative Frobenius error of the best low-rank map of `numbers` stored numbers.

    weight: (m, n). Rank r stores r * (m + n) numbers; between two ranks the squared error is interpolated,
    so that neither side gains from rounding. Eckart and Young (1936).
    """
    m, n = weight.shape
    gram = weight.double()
    gram = gram @ gram.T if m <= n else gram.T @ gram
    energy = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)  # squared singular values, largest first
    total = float(energy.sum())
    if total == 0:
        return 0.0
    rank = numbers / (m + n)
    whole = min(math.floor(rank), len(energy))
    left = float(energy[whole:].sum())
    part = (rank - whole) * float(energy[whole]) if whole < len(energy) else 0.0
    return math.sqrt(max(0.0, left - part) / total)
