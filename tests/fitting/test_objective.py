"""Errors weighted by the inputs: minimized, measured, and safe with few samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.fitting import svd_error
from spm_compress.fitting.objective import output_error, regularized
from spm_compress.fitting.truncated_svd import low_rank_factors
from spm_compress.forms import FitSettings, fit_matrices

SHAPES = [(48, 48), (80, 32), (32, 80)]


def problem(shape: tuple[int, int], rows: int = 500) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, centred inputs (rows, n) whose directions differ by 30 times in scale, and their covariance."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    basis = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator)).Q
    x = torch.randn(rows, shape[1], generator=generator) * torch.linspace(3, 0.1, shape[1]) @ basis
    x = x - x.mean(0)
    return weight, x, x.T @ x / rows


@pytest.mark.parametrize("rank", [0, 2, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_weighting_lowers_the_error_of_the_outputs(shape: tuple[int, int], rank: int | None) -> None:
    weight, x, covariance = problem(shape)
    settings = FitSettings(stages=8, block=8, rank=rank, steps=80)
    metric = regularized(covariance, len(x))[None]
    (plain,), (weighted,) = (
        fit_matrices(weight[None], settings),
        fit_matrices(weight[None], settings, covariances=metric),
    )
    y = x @ weight.T

    def direct(dense: Tensor) -> float:
        return float((y - x @ dense.T).norm() / y.norm())

    assert direct(weighted.operator.to_dense()) < 0.97 * direct(plain.operator.to_dense())
    assert weighted.error > plain.error  # it is another objective
    assert output_error(weight, weighted.operator.to_dense(), covariance) == pytest.approx(
        direct(weighted.operator.to_dense()), rel=1e-4
    )
    assert plain.output_error is None


@pytest.mark.parametrize("shape", SHAPES)
def test_the_weighted_svd_is_that_of_the_product_with_the_inputs(shape: tuple[int, int]) -> None:
    weight, x, covariance = problem(shape)
    left, right = low_rank_factors(weight, 3, covariance)
    singular = np.linalg.svd((x @ weight.T).double().numpy(), compute_uv=False)
    expected = np.sqrt((singular[3:] ** 2).sum() / (singular**2).sum())
    assert output_error(weight, left @ right, covariance) == pytest.approx(expected, rel=1e-4)
    assert svd_error(weight, 3 * sum(shape), covariance) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("rows", [1, 2, 10])
def test_few_samples_fit_without_trouble(rows: int) -> None:
    weight, x, _ = problem((48, 48), rows=rows)
    metric = regularized(x.T @ x / rows, rows)
    assert bool((torch.linalg.eigvalsh(metric.double()) > 0).all())
    (result,) = fit_matrices(weight[None], FitSettings(stages=6, block=8, steps=50), covariances=metric[None])
    assert result.error < 2  # of directions that no sample has: they are free
    assert result.output_error is not None and 0 <= result.output_error < 1


def test_inputs_that_never_vary_weight_nothing() -> None:
    assert torch.equal(regularized(torch.zeros(4, 4), 1), torch.eye(4))


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 3), torch.full((1, 48, 48), float("nan"))])
def test_covariances_that_cannot_be(bad: Tensor) -> None:
    with pytest.raises(FitError, match="covariance"):
        fit_matrices(torch.ones(1, 48, 48), FitSettings(stages=2, block=8), covariances=bad)


@pytest.mark.parametrize("rank", [0, None])
@pytest.mark.parametrize(
    "weight",
    [
        torch.zeros(40, 40),
        torch.ones(40, 40),
        torch.outer(torch.arange(40.0), torch.ones(40)),
        torch.ones(1, 40),
        torch.ones(40, 1),
    ],
    ids=["zero", "constant", "rank 1", "1xN", "Nx1"],
)
def test_degenerate_weights(weight: Tensor, rank: int | None) -> None:
    _, x, covariance = problem((weight.shape[1], weight.shape[1]))
    for covariances in (None, regularized(covariance, len(x))[None]):
        settings = FitSettings(stages=6, block=8, steps=100, rank=rank)
        (result,) = fit_matrices(weight[None], settings, covariances=covariances)
        assert result.error < (0.01 if rank is None else 1.01)
