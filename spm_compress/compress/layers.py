"""Fitting named weights of a source, batch by batch, and measuring what is stored of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from spm_compress.calibration.moments import Moments, PairedMoments
from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.tensor_info import TensorInfo
from spm_compress.errors import FitError
from spm_compress.fitting.fit import fit_matrices, relative_error
from spm_compress.fitting.objective import output_error, regularized, scale_and_ridge
from spm_compress.fitting.settings import FitResult, FitSettings, StepReport
from spm_compress.fitting.truncated_svd import svd_error
from spm_compress.operator.canonical import to_canonical
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer

__all__ = ["Job", "Progress", "Silent", "batches", "digest", "fit_layers"]

# Matrices of one shape are fitted together up to this many values. MiniLM's 36 matrices, 100 steps: 19.1 s at
# 2**18, 11.5 s at 2**20, 10.6 s at 2**22, which takes four times the memory.
_BATCH_VALUES = 1 << 20
# Float16 may raise a layer's error by this factor, and by its own rounding, before float32 is kept.
_MOST_HARM, _ROUNDING = 1.02, 1e-3


class Progress(Protocol):
    """Hears how far a fit is. All calls come from the thread that fits."""

    def begin(self, layers: int) -> None:
        """The number of weights to fit is known."""

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        """These weights, of one shape, are taken in hand."""

    def step(self, report: StepReport) -> None:
        """The batch in hand has come this far."""

    def layer(self, layer: FittedLayer) -> None:
        """One weight is done."""


class Silent:
    """A Progress that tells nobody."""

    def begin(self, layers: int) -> None:
        """Ignore."""

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        """Ignore."""

    def step(self, report: StepReport) -> None:
        """Ignore."""

    def layer(self, layer: FittedLayer) -> None:
        """Ignore."""


@dataclass(frozen=True)
class Job:
    """One weight to fit: its name and those of tensors tied to it, dense dtype, how, and the `digest` of its values.

    moments: of its inputs as they are when it is fitted; paired: the same beside the original model's.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    fit: FitSettings
    sha256: str
    moments: Moments | None = None
    paired: PairedMoments | None = None

    def target(self, weight: Tensor) -> Tensor:
        """Return the matrix (out, in) to approximate: the weight, or what corrects for changed inputs.

        Of inputs x now and x0 in the original model, W' = W cov(x0, x) cov(x, x)^-1 has the least ||W' x - W x0||; with
        the ridge of the metric on both covariances, so that W' = W where nothing has changed.
        """
        if self.paired is None:
            return weight
        now = self.paired.now
        scale, ridge = scale_and_ridge(now.covariance, now.rows)
        ridges = ridge * torch.eye(weight.shape[1], dtype=torch.float64)
        crossed = weight.double() @ (self.paired.cross.double() / scale + ridges)
        solved: Tensor = torch.linalg.solve(now.covariance.double() / scale + ridges, crossed, left=False)
        return solved.float()

    def shift(self, weight: Tensor, matrix: Tensor) -> Tensor | None:
        """Return (out,) float32 what the bias is raised by, so that the mean output stays; None without moments."""
        if self.moments is None:
            return None
        mean = self.moments.mean.double()
        before = mean if self.paired is None else self.paired.mean.double()
        return (weight.double() @ before - matrix.double() @ mean).float()

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weight; tied names are one weight, but each had its own copy on disk."""
        return TensorInfo(self.shape, self.dtype).bytes * len(self.names)


def digest(weight: Tensor) -> str:
    """Return the SHA-256 of the values as float32 in C order: how a weight is found again in a graph."""
    return hashlib.sha256(weight.float().contiguous().numpy().tobytes()).hexdigest()


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


def fit_layers(
    source: Source,
    jobs: Sequence[Job],
    store: torch.dtype,
    device: str,
    progress: Progress,
) -> Iterator[FittedLayer]:
    """Fit every job and yield it as it is stored. Raises FitError naming the weights that cannot be fitted."""
    by_name = {job.names[0]: job for job in jobs}
    shapes = {name: job.shape for name, job in by_name.items()}
    kinds = {name: (job.fit, job.moments is None) for name, job in by_name.items()}
    for batch in batches(shapes, kinds):
        originals = [source.read(name).float() for name in batch]
        targets = [by_name[name].target(weight) for name, weight in zip(batch, originals, strict=True)]
        weights = torch.stack(targets) if len(targets) > 1 else targets[0][None]  # a large weight is not copied
        progress.batch(batch, (weights.shape[1], weights.shape[2]))
        moments = [by_name[name].moments for name in batch]
        known = [each for each in moments if each is not None]
        covariances = torch.stack([regularized(each.covariance, each.rows) for each in known]) if known else None
        if covariances is not None:
            covariances = covariances.to(device)
        try:
            results = fit_matrices(weights.to(device), by_name[batch[0]].fit, progress.step, covariances=covariances)
        except FitError as error:
            raise FitError(f"{', '.join(batch)}: {error}") from error
        for name, weight, result in zip(batch, originals, results, strict=True):
            layer = _measured(by_name[name], weight, result, store)
            progress.layer(layer)
            yield layer


def _measured(job: Job, weight: Tensor, result: FitResult, store: torch.dtype) -> FittedLayer:
    spm, error = stored_as(result, weight, store)
    outputs = svd_outputs = shift = None
    if job.moments is not None:
        matrix = spm.to(torch.float64).to_dense()
        shift = job.shift(weight, matrix)
        outputs = output_error(weight, matrix, job.moments.covariance)
        svd_outputs = svd_error(weight, spm.parameter_count, job.moments.covariance)
    return FittedLayer(
        names=job.names,
        shape=job.shape,
        dtype=job.dtype,
        sha256=job.sha256,
        error=error,
        svd_error=svd_error(weight, spm.parameter_count),
        steps=result.steps,
        restarts=result.restarts,
        start=result.start,
        spm=spm,
        output_error=outputs,
        svd_output_error=svd_outputs,
        shift=shift,
    )


def stored_as(result: FitResult, weight: Tensor, store: torch.dtype) -> tuple[SPM, float]:
    """Return the operator with its mixers in the stored dtype (diagonals stay float32), and its error there.

    An operator that float16 would harm stays float32, and its bytes count as such.
    """
    if store == torch.float32:
        return result.spm, result.error
    spm = result.spm
    if spm.structure.mixer is Mixer.CANONICAL:
        try:
            spm = to_canonical(spm, half=True)
        except FitError:  # not in float16's range even with a scale after every group
            return result.spm, result.error
    rounded = SPM(
        spm.structure,
        [{name: array if name == "diagonals" else array.to(store) for name, array in d.items()} for d in spm.numbers],
    )
    error = relative_error(weight, rounded)
    return (rounded, error) if error <= _MOST_HARM * result.error + _ROUNDING else (result.spm, result.error)
