"""A low-rank term that follows a descent: for whatever stands beside it, its best value is a truncated SVD."""

from __future__ import annotations

import torch
from torch import Tensor

from spm_compress.fitting.objective import Objective

__all__ = ["LowRankTerm"]

# Subspace iterations before and after the descent; during it, one a step.
_SWEEPS = 16


class LowRankTerm:
    """left (k, out, rank) @ right (k, rank, in), near the truncated SVD of what the map beside it leaves.

    It needs no step size: by Eckart and Young (1936) its best value is known, and one step of subspace iteration a step
    of the descent stays near it.
    """

    def __init__(self, objective: Objective, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        batch, out, into = objective.weights.shape
        self._objective = objective
        left = torch.randn(out, rank, generator=generator).expand(batch, -1, -1).to(objective.weights.device)
        right = torch.randn(rank, into, generator=generator).expand(batch, -1, -1).to(objective.weights.device)
        self.factors = left, right
        self._follow(None, _SWEEPS)

    def follow(self, beside: Tensor, *, is_last: bool) -> None:
        """Come nearer to the best term beside a map's matrices (k, out, in); all the way for the last of them."""
        self._follow(beside, _SWEEPS if is_last else 1)

    def _follow(self, beside: Tensor | None, sweeps: int) -> None:
        for _ in range(sweeps):
            self.factors = self._objective.low_rank_step(beside, *self.factors)

    def matrix(self) -> Tensor:
        """Return the term (k, out, in)."""
        left, right = self.factors
        return left @ right
