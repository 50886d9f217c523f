"""A probe: what the closed form alone reaches on a weight of any shape, before any descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spm_compress.fitting import hierarchical
from spm_compress.fitting.bound import chain_bound
from spm_compress.operator.pairing import Schedule, depth_of
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Structure, build_structure

__all__ = ["ClosedForm", "closed_forms", "probe_structure"]


@dataclass(frozen=True)
class ClosedForm:
    """One butterfly of log2 n stages, strides 1, 2, 4, ... once each, as the closed form finds it.

    n: the larger width, to which the weight is padded with zeros; numbers: what the chain stores in canonical form.
    error: relative Frobenius error on the weight itself, after the best common factor; bound: the error that no
    chain of these pairings goes below on it.
    """

    stages: int
    numbers: int
    error: float
    bound: float


def probe_structure(out_features: int, in_features: int) -> Structure:
    """Return the butterfly, in the general form, of the larger width: the deepest one that has a closed form."""
    n = max(2, out_features, in_features)
    return build_structure(n, n, stages=depth_of(n), schedule=Schedule.BUTTERFLY)


def closed_forms(weights: Tensor) -> list[ClosedForm]:
    """Return the closed form of each of weights (k, m, n), any floating dtype, in float64.

    Padding with zeros costs nothing: blocks of zeros are met exactly, so the bound of the padded matrix is one
    for the weight. Raises FitError if a weight holds NaN or infinity.
    """
    m, n = weights.shape[1], weights.shape[2]
    structure = probe_structure(m, n)
    width = structure.in_features
    padded = weights.new_zeros(len(weights), width, width, dtype=torch.float64)
    padded[:, :m, :n] = weights
    norms = torch.linalg.vector_norm(padded, dim=(1, 2))
    padded = padded / torch.where(norms > 0, norms, 1)[:, None, None]
    bounds = chain_bound(weights, structure)
    (numbers,) = hierarchical.factorize(padded, structure)
    found = []
    stored = structure.canonical().parameter_count
    for k, weight in enumerate(padded[:, :m, :n]):
        dense = SPM(structure, [{name: array[k] for name, array in numbers.items()}]).to_dense()[:m, :n]
        energy = float(dense.square().sum())
        factor = float((dense * weight).sum()) / energy if energy else 0.0
        error = float((weight - factor * dense).norm())
        found.append(ClosedForm(structure.stages, stored, error, float(bounds[k])))
    return found
