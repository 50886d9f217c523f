"""The best form of a size for each of a batch of matrices of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.fitting.objective import Objective, output_error
from spm_compress.fitting.settings import OnStep
from spm_compress.forms.candidates import candidates
from spm_compress.forms.form import Fitted, Form, Operator, relative_error
from spm_compress.forms.settings import FitSettings

__all__ = ["FitResult", "fit_matrices"]

# Several forms are tried with this share of the steps; the one that is ahead gets all of them.
_TRIAL = 0.25
_LARGEST_FACTOR = 1e30


@dataclass(frozen=True)
class FitResult:
    """One fitted matrix: the operator as it is stored (float32), its error, how it was reached.

    error: relative Frobenius error ||W - S|| / ||W|| (0 for a zero matrix that is met exactly).
    output_error: the same of the outputs, ||(W - S) C|| / ||W C||, where the fit was weighted.
    restarts: how often the descent began again with a smaller step because it had diverged.
    """

    operator: Operator
    error: float
    steps: int
    restarts: int
    start: str
    output_error: float | None = None


def fit_matrices(
    weights: Tensor, settings: FitSettings, watch: OnStep | None = None, *, covariances: Tensor | None = None
) -> list[FitResult]:
    """Fit a form to each of weights (k, out_features, in_features).

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
    across = weights.mT if narrowing else weights
    # At the norm of an orthogonal matrix the same step size serves every layer; zero weights stay zero.
    normal = torch.empty_like(across, memory_format=torch.contiguous_format)
    factors = (unit / torch.where(norms > 0, norms, 1))[:, None, None]
    # In two steps: for weights near the end of float32 the factor is beyond the other end.
    torch.mul(across, factors.clamp(max=_LARGEST_FACTOR).float(), out=normal)
    normal *= (factors / _LARGEST_FACTOR).clamp(min=1).float()
    objective = Objective(normal, covariances, narrowing)
    forms = candidates(settings, out_features, in_features)
    if not forms:
        raise FitError(f"no {' or '.join(settings.forms)} is as small as {settings.stages} stages; give more `stages`")
    reached = _best_of(objective, forms, settings, watch)
    results = []
    for i, (form, fitted) in enumerate(reached):
        row = objective if k == 1 else objective.row(i)
        exact = form.holding(across[i].cpu())
        operator = Operator(form, exact) if exact else _rescaled(row, form, fitted, float(norms[i]) / unit)
        weight = weights[i].cpu()
        operator = (operator.transposed() if narrowing else operator).stored()
        outputs = None
        if covariances is not None:
            outputs = output_error(weight, operator.to(torch.float64).to_dense(), covariances[i].cpu())
        error = relative_error(weight, operator)
        results.append(FitResult(operator, error, fitted.steps, fitted.restarts, fitted.start, outputs))
    return results


def _best_of(
    objective: Objective, forms: Sequence[Form], settings: FitSettings, watch: OnStep | None
) -> list[tuple[Form, Fitted]]:
    """Fit each matrix in the form that a short trial finds best for it; forms as of the map that is not transposed."""
    across = [form.transposed() if objective.is_transposed else form for form in forms]
    descending = [form for form in across if form.descends(objective)]
    found: dict[int, tuple[Form, Fitted]] = {}
    if descending:
        chosen = [0] * len(objective.weights)
        if len(descending) > 1:
            trial = replace(settings, steps=math.ceil(settings.steps * _TRIAL))
            errors = [[each.error for each in form.fit(objective, trial, watch)] for form in descending]
            chosen = torch.tensor(errors).argmin(0).tolist()
        for choice in sorted(set(chosen)):
            rows = [i for i, each in enumerate(chosen) if each == choice]
            part = objective.subset(torch.tensor(rows, device=objective.weights.device))
            for row, each in zip(rows, descending[choice].fit(part, settings, watch), strict=True):
                found[row] = descending[choice], each
    for form in across:
        if form not in descending:  # a descent that ends above the SVD of its size is not worth its stages
            for row, each in enumerate(form.fit(objective, settings, None)):
                if row not in found or each.error < found[row][1].error:
                    found[row] = form, each
    return [found[row] for row in range(len(objective.weights))]


def _rescaled(row: Objective, form: Form, fitted: Fitted, scale: float) -> Operator:
    """Return the operator at the weight's own scale, with the factor of least error, on the CPU."""
    batch = {name: array[None] for name, array in fitted.arrays.items()}
    factor = scale * form.best_factor(row, batch).double().cpu()
    on_cpu = {name: array.cpu() for name, array in batch.items()}
    back = form.scaled(on_cpu, factor.float())
    return Operator(form, {name: array[0] for name, array in back.items()})
