"""The nearest Monarch matrix in closed form (Dao et al., "Monarch: expressive structured matrices", ICML 2022).

A Monarch matrix is P L Q R with fixed permutations P, Q: R is block-diagonal with r blocks (t, p), L with t
blocks (s, r). Seen as a tensor, M[s, t, r, p] = L[t, s, r] R[r, t, p]: every slice of a t and an r has rank one, and
is approximated by its own first singular vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Monarch", "nearest_size", "project"]


@dataclass(frozen=True)
class Monarch:
    """right: number of blocks of R, divides the input width n; left: of L, divides the output width m."""

    right: int
    left: int

    def stored_numbers(self, m: int, n: int) -> int:
        """Return how many entries both factors have: r m + t n."""
        return self.right * m + self.left * n


def nearest_size(m: int, n: int, numbers: int) -> Monarch:
    """Return the blocks whose size is nearest to so many numbers, by ratio; of equal ones the squarest slices."""
    shapes = [Monarch(right, left) for right in divisors(n) for left in divisors(m)]

    def distance(shape: Monarch) -> tuple[float, float]:
        slice_ratio = (m / shape.left) / (n / shape.right)
        return abs(math.log(shape.stored_numbers(m, n) / numbers)), abs(math.log(slice_ratio))

    return min(shapes, key=distance)


def divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def project(weight: Tensor, shape: Monarch) -> Tensor:
    """Return the Monarch matrix (m, n) that is nearest to weight (m, n) in the Frobenius norm."""
    m, n = weight.shape
    r, t = shape.right, shape.left
    slices = weight.double().reshape(m // t, t, r, n // r).permute(1, 2, 0, 3)  # (t, r, s, p)
    u, values, vt = torch.linalg.svd(slices, full_matrices=False)
    rank_one: Tensor = values[..., :1, None] * u[..., :1] * vt[..., :1, :]  # (t, r, s, p)
    return rank_one.permute(2, 0, 1, 3).reshape(m, n)
