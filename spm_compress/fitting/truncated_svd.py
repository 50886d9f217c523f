"""The alternative that every fit is shown beside, and joined with: a truncated SVD."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spm_compress.fitting.spectrum import Spectrum, spectra
from spm_compress.fitting.threads import one_thread

__all__ = ["low_rank_factors", "rank_one", "svd_error"]


def svd_error(weight: Tensor, numbers: float, covariance: Tensor | None = None) -> float:
    """Return the relative Frobenius error of the best low-rank map of `numbers` stored numbers.

    weight: (m, n); covariance: (n, n) of the inputs, for the least error of the outputs instead.
    How ranks are counted: `Spectrum.svd_error`. Raises FitError for NaN or infinite values.
    """
    if covariance is None:
        return spectra(weight[None])[0].svd_error(numbers)
    gram = _gram(weight.double(), covariance)
    with one_thread():
        energy = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0)  # largest first
    total = float(energy.sum())
    shares = energy / total if total else energy
    return Spectrum((weight.shape[0], weight.shape[1]), math.sqrt(total), shares).svd_error(numbers)


def low_rank_factors(weight: Tensor, rank: int, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return left (m, rank) and right (rank, n), float64, with the least error in the sense of `svd_error`.

    left is orthonormal. The best map is Q Q^T W, Q the first left singular vectors of W C with C C^T the covariance.
    """
    weight = weight.double()
    m, n = weight.shape
    gram = _gram(weight, covariance)
    with one_thread():
        vectors = torch.linalg.eigh(gram).eigenvectors[:, len(gram) - rank :]
    basis = vectors
    if m > n:
        seen = weight @ (vectors if covariance is None else _root(covariance) @ vectors)
        with one_thread():
            basis = torch.linalg.qr(seen).Q
    return basis, basis.T @ weight


def rank_one(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return (k, r) and (k, c), whose outer products are the best rank-one approximations of blocks (k, r, c)."""
    left, right = blocks.new_zeros(blocks.shape[:2]), blocks.new_zeros(blocks.shape[0], blocks.shape[2])
    held = blocks.flatten(1).any(1)  # a matrix padded to a square is mostly blocks of zeros
    with one_thread():
        u, s, vt = torch.linalg.svd(blocks[held], full_matrices=False)
    root = s[:, :1].sqrt()
    left[held], right[held] = u[:, :, 0] * root, vt[:, 0] * root
    return left, right


def _gram(weight: Tensor, covariance: Tensor | None) -> Tensor:
    """Return the smaller of W M W^T and C^T W^T W C; its eigenvalues are the squared singular values of W C."""
    m, n = weight.shape
    if m <= n:
        return weight @ weight.T if covariance is None else weight @ covariance.double() @ weight.T
    gram = weight.T @ weight
    if covariance is None:
        return gram
    root = _root(covariance)
    return root @ gram @ root


def _root(covariance: Tensor) -> Tensor:
    with one_thread():
        values, vectors = torch.linalg.eigh(covariance.double())
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
