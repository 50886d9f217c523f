"""A probe: what the closed form alone reaches on a weight of any shape, before any descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spm_compress.codecs import FLOAT32
from spm_compress.forms.form import Operator, numbers_of
from spm_compress.forms.spm import hierarchical
from spm_compress.forms.spm.bound import chain_bound
from spm_compress.forms.spm.form import SPM, build_spm
from spm_compress.forms.spm.pairing import Schedule, depth_of

__all__ = ["ClosedForm", "closed_forms", "probe_structure"]


@dataclass(frozen=True)
class ClosedForm:
    """One butterfly of log2 n stages, strides 1, 2, 4, ... once each, as the closed form finds it.

    n: the larger width, to which the weight is padded with zeros; numbers: of the chain in the canonical gauge.
    error: relative Frobenius error on the weight itself, after the best common factor; bound: the error that no
    chain of these pairings goes below on it.
    """

    stages: int
    numbers: int
    error: float
    bound: float


def probe_structure(out_features: int, in_features: int) -> SPM:
    """Return the butterfly, in the general form, of the larger width: the deepest one that has a closed form."""
    n = max(2, out_features, in_features)
    return build_spm(n, n, stages=depth_of(n), schedule=Schedule.BUTTERFLY)


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
    arrays = hierarchical.factorize(padded, structure)
    found = []
    stored = numbers_of(structure.stored(FLOAT32))
    for k, weight in enumerate(padded[:, :m, :n]):
        dense = Operator(structure, {name: array[k] for name, array in arrays.items()}).to_dense()[:m, :n]
        energy = float(dense.square().sum())
        factor = float((dense * weight).sum()) / energy if energy else 0.0
        error = float((weight - factor * dense).norm())
        found.append(ClosedForm(structure.stages, stored, error, float(bounds[k])))
    return found
