"""One weight to fit."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spm_compress.calibration.moments import Moments, PairedMoments
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.tensor_info import TensorInfo, bias_of
from spm_compress.fitting.objective import output_error, scale_and_ridge
from spm_compress.fitting.threads import one_thread
from spm_compress.fitting.truncated_svd import svd_error
from spm_compress.forms.settings import FitSettings

__all__ = ["Job", "digest", "has_bias"]


@dataclass(frozen=True)
class Job:
    """One weight to fit: its name and those of tensors tied to it, dense dtype, how, and the `digest` of its values.

    moments: of its inputs as they are when it is fitted; paired: the same beside the original model's. has_bias:
    whether the model can take a change of the mean output; if not, the fit is to the inputs about zero. stays: whether
    it is a dense map or a lookup table that stays, and only its numbers are stored in fewer bits; is_table: which of
    both. kernel_dims: as in TensorInfo.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    fit: FitSettings
    sha256: str
    moments: Moments | None = None
    paired: PairedMoments | None = None
    has_bias: bool = True
    stays: bool = False
    is_table: bool = False
    kernel_dims: int = 0

    def watched(self, moments: Moments | None, paired: PairedMoments | None = None) -> Job:
        """Return the job with what is known of its inputs."""
        if not self.has_bias:
            moments = None if moments is None else moments.about_zero()
            paired = None if paired is None else paired.about_zero()
        return replace(self, moments=moments, paired=paired)

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
        with one_thread():
            solved: Tensor = torch.linalg.solve(now.covariance.double() / scale + ridges, crossed, left=False)
        return solved.float()

    def output_errors(self, weight: Tensor, matrix: Tensor, numbers: int | None) -> tuple[float, float | None]:
        """Return the relative errors of the outputs, of `matrix` and of the SVD of so many numbers, if that is asked.

        Of changed inputs x: ||S x - W x0|| / ||W x0|| about the means, the SVD being that of the target W'. What no S
        can correct, ||W' x - W x0||, is in both. Only for a job with moments.
        """
        assert self.moments is not None
        now = self.moments.covariance
        if self.paired is None:
            return output_error(weight, matrix, now), _svd_error(weight, numbers, now)
        target, cross = self.target(weight).double(), self.paired.cross.double()
        weight, matrix = weight.double(), matrix.double()
        whole = float((weight @ self.paired.covariance.double() * weight).sum())
        if not whole > 0:
            return output_error(target, matrix, now), _svd_error(target, numbers, now)

        def missed(s: Tensor) -> float:  # E ||S x - W x0||^2
            with_now, with_first = s @ now.double(), weight @ cross
            return max(0.0, whole - 2 * float((with_first * s).sum()) + float((with_now * s).sum()))

        error, svd = math.sqrt(missed(matrix) / whole), _svd_error(target, numbers, now)
        if svd is None:
            return error, None
        reached = float((target @ now.double() * target).sum())
        return error, math.sqrt((missed(target) + svd**2 * reached) / whole)

    def bias_correction(self, weight: Tensor, matrix: Tensor) -> Tensor | None:
        """Return (out,) float32 what the bias is raised by, so that the mean output stays.

        None without moments, or without a bias.
        """
        if self.moments is None or not self.has_bias:
            return None
        mean = self.moments.mean.double()
        before = mean if self.paired is None else self.paired.mean.double()
        return (weight.double() @ before - matrix.double() @ mean).float()

    @property
    def dense_bytes(self) -> int:
        """Bytes of the dense weight; tied names are one weight, which a graph holds once."""
        return TensorInfo(self.shape, self.dtype).bytes


def _svd_error(weight: Tensor, numbers: int | None, covariance: Tensor) -> float | None:
    return None if numbers is None else svd_error(weight, numbers, covariance)


def digest(weight: Tensor) -> str:
    """Return the SHA-256 of the values as float32 in C order: how a weight is found again in a graph."""
    return hashlib.sha256(weight.float().contiguous().numpy().tobytes()).hexdigest()


def has_bias(source: Source, infos: Mapping[str, TensorInfo], names: Iterable[str]) -> bool:
    """Return whether the model can take a change of the mean output of a weight with these names."""
    return source.graph is not None or all(bias_of(name) in infos for name in names)
