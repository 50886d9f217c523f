"""The best SPM of a size for each of a batch of matrices of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.fitting.descent import Descended, descend, scaled
from spm_compress.fitting.forms import forms
from spm_compress.fitting.objective import Objective, energies, output_error
from spm_compress.fitting.settings import FitResult, FitSettings, OnStep
from spm_compress.fitting.target import Target
from spm_compress.fitting.truncated_svd import low_rank_factors
from spm_compress.operator.canonical import to_canonical, transpose
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure

__all__ = ["fit_matrices", "relative_error", "stored_form"]

# Several forms are tried with this share of the steps; the one that is ahead gets all of them.
_TRIAL = 0.25
# Errors are computed in float64 by so many columns at a time: a large weight in float64 would take most of the memory.
_COLUMNS = 512


def relative_error(weight: Tensor, spm: SPM) -> float:
    """Return ||W - S|| / ||W|| in float64 (Frobenius); 0 or infinity when W is zero."""
    exact = spm.to(torch.float64)
    difference = norm = 0.0
    for start in range(0, weight.shape[1], _COLUMNS):
        part = weight[:, start : start + _COLUMNS].double()
        probe = torch.zeros(weight.shape[1], part.shape[1], dtype=torch.float64)
        probe.diagonal(-start).fill_(1)
        difference = math.hypot(difference, float((part - exact.matmul(probe)).norm()))
        norm = math.hypot(norm, float(part.norm()))
    return difference / norm if norm else (0.0 if difference == 0 else math.inf)


def fit_matrices(
    weights: Tensor, settings: FitSettings, watch: OnStep | None = None, *, covariances: Tensor | None = None
) -> list[FitResult]:
    """Fit one SPM to each of weights (k, out_features, in_features).

    Any floating dtype; the work is done in float32 on the device of the weights. Deterministic: the same
    weights, settings and machine give the same numbers. `watch` is called every few steps.
    covariances: (k, in_features, in_features), positive definite (`objective.regularized`), of the layers'
    inputs: the error of the outputs is minimized instead of that of the weights.

    Raises FitError if a weight or covariance holds NaN or infinity, or a batch has another shape.
    """
    if weights.dim() != 3 or not weights.numel():
        raise FitError(f"a batch of weights has shape (k, out_features, in_features), not {tuple(weights.shape)}")
    weights = weights.float()
    if not bool(weights.isfinite().all()):
        raise FitError("the weight holds NaN or infinite values; repair the model or exclude the layer")
    k, out_features, in_features = weights.shape
    if covariances is not None:
        if covariances.shape != (k, in_features, in_features):
            raise FitError(f"covariances have shape {tuple(covariances.shape)}, not {(k, in_features, in_features)}")
        if not bool(covariances.isfinite().all()):
            raise FitError("the covariance of the inputs holds NaN or infinite values; check the calibration data")
        covariances = covariances.to(weights)
    norms = torch.linalg.vector_norm(weights, dim=(1, 2), dtype=torch.float64)
    unit = math.sqrt(min(out_features, in_features))
    # A narrowing map is fitted as its transpose: the identity it is probed with is the smaller one.
    narrowing = in_features > out_features
    turned = weights.mT if narrowing else weights
    # At the norm of an orthogonal matrix the same step size serves every layer; zero weights stay zero.
    normal = torch.empty_like(turned, memory_format=torch.contiguous_format)
    torch.mul(turned, (unit / torch.where(norms > 0, norms, 1)).float()[:, None, None], out=normal)
    objective = Objective(normal, covariances, narrowing)
    reached = _best_of(objective, forms(settings, out_features, in_features), settings, watch)
    results = []
    for i, (structure, done) in enumerate(reached):
        row = objective if k == 1 else objective.subset(torch.tensor([i], device=weights.device))
        spm = _rescaled(row, structure, done, float(norms[i]) / unit)
        weight = weights[i].cpu()
        spm = stored_form(transpose(spm) if narrowing else spm)
        outputs = None
        if covariances is not None:
            outputs = output_error(weight, spm.to(torch.float64).to_dense(), covariances[i].cpu())
        results.append(FitResult(spm, relative_error(weight, spm), done.steps, done.restarts, done.start, outputs))
    return results


def _best_of(
    objective: Objective, structures: Sequence[Structure], settings: FitSettings, watch: OnStep | None
) -> list[tuple[Structure, Descended]]:
    """Fit each matrix in the structure that a short trial finds best for it; structures as of the untransposed map."""
    turned = [structure.transposed() if objective.is_transposed else structure for structure in structures]
    alone = next((structure for structure in turned if not structure.chains), None)
    turned = [structure for structure in turned if structure.chains] or turned
    chosen = [0] * len(objective.weights)
    if len(turned) > 1:
        trial = replace(settings, steps=math.ceil(settings.steps * _TRIAL))
        errors = torch.tensor([[each.error for each in _fit(objective, one, trial, watch)] for one in turned])
        chosen = errors.argmin(0).tolist()
    found: dict[int, tuple[Structure, Descended]] = {}
    for choice in sorted(set(chosen)):
        rows = [i for i, each in enumerate(chosen) if each == choice]
        part = objective.subset(torch.tensor(rows, device=objective.weights.device))
        done = _fit(part, turned[choice], settings, watch)
        for row, each in zip(rows, done, strict=True):
            found[row] = turned[choice], each
    if alone is not None:  # a descent that ends above the SVD of its size is not worth its stages
        for row, each in enumerate(_fit(objective, alone, settings, None)):
            if each.error < found[row][1].error:
                found[row] = alone, each
    return [found[row] for row in range(len(chosen))]


def _fit(objective: Objective, structure: Structure, settings: FitSettings, watch: OnStep | None) -> list[Descended]:
    if structure.chains:
        return descend(objective, structure, settings, watch)
    done = []
    for i in range(len(objective.weights)):
        row = objective.subset(torch.tensor([i], device=objective.weights.device))
        metric = None if row.metric is None else row.metric[0]
        weight = row.weights[0].mT if row.is_transposed else row.weights[0]
        left, right = low_rank_factors(weight, structure.rank, metric)
        if row.is_transposed:
            left, right = right.mT, left.mT
        left, right = left.float(), right.float()
        energy, _ = energies(row, (left @ right)[None] - row.weights)
        error = float(energy[0].sqrt() / row.norms()[0])
        done.append(Descended([{"left": left, "right": right}], error, 0, 0, "svd"))
    return done


def _rescaled(row: Objective, structure: Structure, done: Descended, scale: float) -> SPM:
    """Return the operator at the weight's own scale, with the factor of least error, on the CPU."""
    batch = [{name: array[None] for name, array in named.items()} for named in done.numbers]
    target = Target(row, structure)
    factor = scale * target.objective.best_scale(target.entries(batch)).double().cpu()
    on_cpu = [{name: array.cpu() for name, array in named.items()} for named in batch]
    back = scaled(on_cpu, structure, factor.abs().float(), torch.where(factor < 0, -1.0, 1.0))
    return SPM(structure, [{name: array[0] for name, array in named.items()} for named in back])


def stored_form(spm: SPM) -> SPM:
    """Return the same map as it is stored: general stages in canonical form, where that is in the range of float32."""
    if spm.structure.mixer is not Mixer.GENERAL:
        return spm
    try:
        return to_canonical(spm)
    except FitError:  # out of range: twice the numbers, and the count says so
        return spm
