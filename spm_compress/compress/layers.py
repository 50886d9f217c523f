"""Fitting a batch of weights of one shape, and measuring what is stored of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.compress.job import Job
from spm_compress.errors import FitError
from spm_compress.fitting.objective import regularized
from spm_compress.fitting.settings import OnStep
from spm_compress.fitting.truncated_svd import svd_error
from spm_compress.forms.fit import FitResult, fit_matrices
from spm_compress.forms.form import relative_error
from spm_compress.forms.stored import encoded, fewest_bits

__all__ = ["batches", "fit_batch"]

# Matrices of one shape are fitted together up to this many values. MiniLM's 36 matrices, 100 steps: 19.1 s at
# 2**18, 11.5 s at 2**20, 10.6 s at 2**22, which takes four times the memory.
_BATCH_VALUES = 1 << 20


def batches(shapes: Mapping[str, tuple[int, int]], kinds: Mapping[str, object] | None = None) -> Iterator[list[str]]:
    """Yield names in batches of one shape (and one kind, if given), each of a size that is worth fitting together."""
    by_shape: dict[object, list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault((shape, kinds[name] if kinds else None), []).append(name)
    for names in by_shape.values():
        m, n = shapes[names[0]]
        size = max(1, _BATCH_VALUES // (m * n))
        for start in range(0, len(names), size):
            yield names[start : start + size]


def fit_batch(
    jobs: Sequence[Job], originals: Sequence[Tensor], device: str, watch: OnStep | None = None
) -> list[FittedLayer]:
    """Fit jobs of one shape and kind to their weights (out, in) and return them as they are stored, in their order.

    A weight ends the same, to the bit, in whatever batch it is. Raises FitError naming those that cannot be fitted.
    """
    originals = [weight.float() for weight in originals]
    targets = [job.target(weight) for job, weight in zip(jobs, originals, strict=True)]
    weights = torch.stack(targets) if len(targets) > 1 else targets[0][None]  # a large weight is not copied
    known = [job.moments for job in jobs if job.moments is not None]
    covariances = torch.stack([regularized(each.covariance, each.rows) for each in known]) if known else None
    if covariances is not None:
        covariances = covariances.to(device)
    try:
        results = fit_matrices(weights.to(device), jobs[0].fit, watch, covariances=covariances)
    except FitError as error:
        raise FitError(f"{', '.join(job.names[0] for job in jobs)}: {error}") from error
    return [_measured(job, weight, result) for job, weight, result in zip(jobs, originals, results, strict=True)]


def _measured(job: Job, weight: Tensor, result: FitResult) -> FittedLayer:
    metric = None if job.moments is None else regularized(job.moments.covariance, job.moments.rows)
    store = fewest_bits if job.fit.fewest else encoded
    found = store(result.operator, job.fit.store, job.target(weight), result.error, metric)
    operator, error = found.operator.decoded(), found.error
    if job.paired is not None:  # the fit was to another matrix
        error = relative_error(weight, operator)
    outputs = svd_outputs = correction = None
    numbers = None if job.stays else operator.parameter_count  # of an SVD to compare with
    if job.moments is not None:
        matrix = operator.to(torch.float64).to_dense()
        correction = job.bias_correction(weight, matrix)
        outputs, svd_outputs = job.output_errors(weight, matrix, numbers)
    return FittedLayer(
        names=job.names,
        shape=job.shape,
        dtype=job.dtype,
        sha256=job.sha256,
        error=error,
        svd_error=None if numbers is None else svd_error(weight, numbers),
        steps=result.steps,
        restarts=result.restarts,
        start=result.start,
        stored=found.operator,
        output_error=outputs,
        svd_output_error=svd_outputs,
        bias_correction=correction,
        reason=found.reason,
        is_table=job.is_table,
        kernel_dims=job.kernel_dims,
    )
