"""Mean and covariance of inputs, from batches that are seen once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Moments", "PairedMoments", "Sums"]


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of one layer's inputs. rows: samples seen; mean: (n,) float32; covariance: (n, n) float32."""

    rows: int
    mean: Tensor
    covariance: Tensor

    def about_zero(self) -> Moments:
        """Return the moments about zero: a mean of zero, and the mean squares as covariance."""
        return Moments(self.rows, torch.zeros_like(self.mean), self.covariance + torch.outer(self.mean, self.mean))


@dataclass(frozen=True)
class PairedMoments:
    """Moments of a layer's inputs now, beside those that it has in the original model.

    mean (n,), covariance (n, n): of the original inputs; cross: (n, n) covariance of original with present inputs,
    float32.
    """

    now: Moments
    mean: Tensor
    covariance: Tensor
    cross: Tensor

    def about_zero(self) -> PairedMoments:
        """Return the moments about zero, as `Moments.about_zero`."""
        return PairedMoments(
            self.now.about_zero(),
            torch.zeros_like(self.mean),
            self.covariance + torch.outer(self.mean, self.mean),
            self.cross + torch.outer(self.mean, self.now.mean),
        )


class Sums:
    """Sums of two aligned streams of rows and of their products, about the first batch's means, in float64.

    About a value near the mean, so that the difference of two large sums does not cost the covariance its digits.
    """

    def __init__(self) -> None:
        self.rows = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in a batch: a (rows, m), b (rows, n), floating."""
        if not len(a):
            return
        if not self.rows:
            self._origin = a.double().mean(0), b.double().mean(0)
            self._sums = torch.zeros_like(self._origin[0]), torch.zeros_like(self._origin[1])
            self._products = torch.zeros(a.shape[1], b.shape[1], dtype=torch.float64)
        left, right = (each.double() - origin for each, origin in zip((a, b), self._origin, strict=True))
        self._sums[0].add_(left.sum(0))
        self._sums[1].add_(right.sum(0))
        # Sums of one batch fit float32, in which the product is twice as fast.
        self._products += (left.float().T @ right.float()).double()
        self.rows += len(a)

    def means(self) -> tuple[Tensor, Tensor]:
        """Return (m,) and (n,) float32."""
        first, second = (
            (origin + total / self.rows).float() for origin, total in zip(self._origin, self._sums, strict=True)
        )
        return first, second

    def covariance(self) -> Tensor:
        """Return (m, n) float32."""
        left, right = (total / self.rows for total in self._sums)
        return (self._products / self.rows - torch.outer(left, right)).float()

    def moments(self) -> Moments:
        """Return the moments of the second stream; meant for two streams that are one."""
        return Moments(self.rows, self.means()[1], self.covariance())
