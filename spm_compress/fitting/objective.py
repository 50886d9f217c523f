"""What a fit minimizes: the relative error of a batch of matrices, plain or weighted by their inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spm_compress.fitting.threads import inner, one_thread

__all__ = ["Objective", "energies", "output_error", "regularized", "scale_and_ridge"]

# Share of the mean eigenvalue that is added to every one. A direction without samples would cost nothing to
# get wrong: with n / rows times as much, few samples give a nearly plain fit.
_RIDGE = 1e-4


def regularized(covariance: Tensor, rows: int) -> Tensor:
    """Return (n, n) float32: the covariance of `rows` samples plus a ridge scaled to its trace.

    The identity, hence a plain fit, where the samples do not vary at all.
    """
    scale, ridge = scale_and_ridge(covariance, rows)
    return (covariance.double() / scale + ridge * torch.eye(len(covariance), dtype=torch.float64)).float()


def scale_and_ridge(covariance: Tensor, rows: int) -> tuple[float, float]:
    """Return the mean eigenvalue of a covariance (n, n) and the ridge beside it once that is one."""
    n = len(covariance)
    mean = float(covariance.diagonal().double().mean())
    return (mean, _RIDGE * (1 + n / max(rows, 1))) if mean > 0 else (math.inf, 1.0)


def output_error(weight: Tensor, matrix: Tensor, covariance: Tensor) -> float:
    """Return ||(W - S) C|| / ||W C||, C C^T the covariance (in, in) of the inputs: relative error of the outputs.

    weight, matrix: (out, in). In float64; 0 or infinity where the layer's outputs do not vary.
    """
    covariance = covariance.double()
    difference, whole = weight.double() - matrix.double(), weight.double()
    energy, total = (max(0.0, float(inner((each @ covariance)[None], each[None]))) for each in (difference, whole))
    return math.sqrt(energy / total) if total else (0.0 if energy == 0 else math.inf)


@dataclass(frozen=True)
class Objective:
    """tr(D M D^T) / tr(W M W^T) with D = S - W, for each of a batch; M is the identity if there is no metric.

    weights: (k, out, in); metric: (k, in, in), or (k, out, out) of maps that are fitted as their
    transpose, where it stands on the other side (`is_transposed`).
    beyond: (k,) the squared error that no map can help, of entries that `weights` leaves out.
    """

    weights: Tensor
    metric: Tensor | None = None
    is_transposed: bool = False
    beyond: Tensor | None = None

    def weighted(self, difference: Tensor) -> Tensor:
        """Return D M (M D if transposed): half the gradient of the squared error."""
        if self.metric is None:
            return difference
        return self.metric @ difference if self.is_transposed else difference @ self.metric

    def norms(self) -> Tensor:
        """Return (k,) the norm of each weight; infinite for zero, which the scale zero meets exactly."""
        plain = self.metric is None
        norms = self.frobenius() if plain else _energy(self.weights, self.weighted(self.weights)).sqrt()
        return torch.where(norms > 0, norms, math.inf)

    def frobenius(self) -> Tensor:
        """Return (k,) the Frobenius norm of each weight, with what `beyond` holds."""
        norms: Tensor = torch.linalg.vector_norm(self.weights, dim=(1, 2))  # without a copy of them
        return norms if self.beyond is None else (norms.square() + self.beyond).sqrt()

    def best_scale(self, dense: Tensor) -> Tensor:
        """Return (k,) the factor <W, S> / <S, S> of least error: with it, no fit is worse than the zero map."""
        weighted = self.weighted(dense)
        energy = _energy(dense, weighted)
        return torch.where(energy > 0, _energy(self.weights, weighted) / energy, 1.0)

    def errors(self, matrices: Tensor) -> Tensor:
        """Return (k,) the relative errors of matrices (k, out, in), one for each weight."""
        energy, _ = energies(self, matrices - self.weights)
        return energy.sqrt() / self.norms()

    def row(self, i: int) -> Objective:
        """Return the objective of one of the batch."""
        return self.subset(torch.tensor([i], device=self.weights.device))

    def subset(self, rows: Tensor) -> Objective:
        """Return the objective of some of the batch."""
        metric = None if self.metric is None else self.metric[rows]
        beyond = None if self.beyond is None else self.beyond[rows]
        return Objective(self.weights[rows], metric, self.is_transposed, beyond)

    def within(self, entries: Tensor) -> Objective:
        """Return the plain objective of these entries (k, rows, columns) of the weights, all that maps can reach."""
        found = Objective(entries, None, self.is_transposed)
        missed = self.frobenius().square() - found.frobenius().square()
        return replace(found, beyond=missed.clamp(min=0))

    def low_rank_step(self, chain: Tensor | None, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Return left (k, out, r) and right (k, r, in) nearer to the best low-rank term of the chain's matrix.

        One step of subspace iteration on W - S. For a fixed chain the best low-rank term is the truncated SVD of what
        the chain leaves (Eckart and Young 1936; weighted: of its product with the metric's root).
        """
        rest = self.weights if chain is None else self.weights - chain
        if self.is_transposed:
            seen = left if self.metric is None else self.metric @ left
            basis = _orthonormal(rest.mT @ seen)
            return rest @ basis, basis.mT
        seen = right.mT if self.metric is None else self.metric @ right.mT
        basis = _orthonormal(rest @ seen)
        return basis, basis.mT @ rest


def _orthonormal(columns: Tensor) -> Tensor:
    with one_thread():
        basis: Tensor = torch.linalg.qr(columns).Q
    return basis


def energies(objective: Objective, difference: Tensor) -> tuple[Tensor, Tensor]:
    """Return (k,) the squared errors of differences (k, out, in), and half their gradient."""
    weighted = objective.weighted(difference)
    energy = _energy(difference, weighted)
    return (energy if objective.beyond is None else energy + objective.beyond), weighted


def _energy(a: Tensor, b: Tensor) -> Tensor:
    return inner(a, b).clamp(min=0)
