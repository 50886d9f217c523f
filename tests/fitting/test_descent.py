"""Fitting matrices: planted targets, odd matrices, determinism, restarts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import gaussian

from spm_compress.errors import FitError
from spm_compress.fitting import FitSettings, StepReport, fit_matrices, svd_error
from spm_compress.operator import SPM, Mixer, Schedule


def planted(settings: FitSettings, n: int, seed: int = 0) -> torch.Tensor:
    structure = settings.structure(n, n)
    generator = torch.Generator().manual_seed(seed)
    numbers = [{name: torch.randn(s, generator=generator) for name, s in named.items()} for named in structure.shapes()]
    return SPM(structure, numbers).to_dense()


@pytest.mark.parametrize("n", [64, 256])
@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize("schedule", [Schedule.GROUPED, Schedule.BUTTERFLY])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_chain_of_the_same_family_is_recovered(schedule: Schedule, mixer: Mixer, n: int, seed: int) -> None:
    settings = FitSettings(stages=n.bit_length() - 1, mixer=mixer, schedule=schedule, seed=seed)
    target = planted(settings, n, seed)
    (result,) = fit_matrices(target[None], settings)
    found = result.spm.to_dense().double()
    assert float((found - target).norm() / target.norm()) < 1e-5  # the issue asks for 1e-3
    assert result.start == "hierarchical"


@pytest.mark.parametrize("n", [64, 256])
def test_the_hadamard_matrix_is_recovered(n: int) -> None:
    hadamard = torch.ones(1, 1)
    while len(hadamard) < n:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), hadamard)
    settings = FitSettings(stages=n.bit_length() - 1, schedule=Schedule.BUTTERFLY)
    (result,) = fit_matrices(hadamard[None], settings)
    assert result.error < 1e-5


def test_a_deep_chain_descends_at_a_rate_that_gets_it_down() -> None:
    weights = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(0))
    results = fit_matrices(weights, FitSettings(stages=45, block=8, steps=450))
    # 0.292, 0.302, 0.286; at half the rate, falling as a root of the stages: 0.323, 0.329, 0.314
    assert sum(result.error for result in results) / 3 < 0.31


def test_descent_alone_ends_early_where_it_has_arrived() -> None:
    (result,) = fit_matrices(torch.tensor([[[-3.0]]]), FitSettings(mixer=Mixer.ROTATION))
    assert result.start == "random"
    assert result.error < 1e-3
    assert result.steps < FitSettings().steps


@given(
    shape=st.sampled_from([(48, 48), (96, 48), (48, 96)]),
    order=st.permutations(range(4)).flatmap(lambda rows: st.integers(1, 4).map(lambda k: rows[:k])),
    stages=st.integers(1, 12),
    mixer=st.sampled_from([Mixer.GENERAL, Mixer.ROTATION, None]),
    rank=st.sampled_from([0, 2, None]),
    weighted=st.booleans(),
)
@settings(max_examples=12, deadline=None)
def test_a_matrix_ends_the_same_whatever_else_is_in_its_batch(
    shape: tuple[int, int], order: list[int], stages: int, mixer: Mixer | None, rank: int | None, weighted: bool
) -> None:
    weights = gaussian(4, *shape)
    weights[1] = planted(FitSettings(stages=2, block=8), 96)[: shape[0], : shape[1]]  # this one is done early
    inputs = gaussian(4, shape[1], 3 * shape[1])
    covariances = inputs @ inputs.mT if weighted else None
    asked = FitSettings(stages=stages, mixer=mixer, rank=rank, steps=60, block=8)
    whole = fit_matrices(weights, asked, covariances=covariances)
    part = fit_matrices(weights[order], asked, covariances=None if covariances is None else covariances[order])
    for row, alone in zip(order, part, strict=True):
        assert alone.spm.structure == whole[row].spm.structure
        assert (alone.steps, alone.restarts) == (whole[row].steps, whole[row].restarts)
        for a, b in zip(alone.spm.numbers, whole[row].spm.numbers, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_inputs_give_the_same_bytes() -> None:
    weights, settings = gaussian(2, 48, 96), FitSettings(steps=40)
    first, second = fit_matrices(weights, settings), fit_matrices(weights, settings)
    for a, b in zip(first, second, strict=True):
        assert a.error == b.error
        assert all(torch.equal(x[k], y[k]) for x, y in zip(a.spm.numbers, b.spm.numbers, strict=True) for k in x)


def test_the_seed_matters() -> None:
    weights = gaussian(1, 48, 48)
    errors = {fit_matrices(weights, FitSettings(steps=20, seed=seed))[0].error for seed in (0, 1)}
    assert len(errors) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_fitted_in_float32(dtype: torch.dtype) -> None:
    (result,) = fit_matrices(gaussian(1, 40, 40).to(dtype), FitSettings(steps=50))
    assert all(array.dtype == torch.float32 for named in result.spm.numbers for array in named.values())
    assert result.error < 0.98


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize(
    ("matrix", "most"),
    [
        (torch.zeros(24, 24), 0.0),
        (torch.zeros(5, 12), 0.0),
        (torch.ones(64, 32), 0.05),
        (gaussian(1, 40), 0.01),
        (gaussian(40, 1), 0.01),
        (torch.tensor([[-3.0]]), 0.01),
        (gaussian(30, 1) @ gaussian(1, 50), 0.8),
        (torch.diag(gaussian(24)), 0.9),
    ],
    ids=["zero", "zero wide", "constant", "1xN", "Nx1", "1x1", "rank 1", "singular diagonal"],
)
def test_odd_matrices_are_fitted(matrix: torch.Tensor, most: float, mixer: Mixer) -> None:
    (result,) = fit_matrices(matrix[None], FitSettings(mixer=mixer, steps=200))
    assert all(bool(array.isfinite().all()) for named in result.spm.numbers for array in named.values())
    assert result.error <= most


def test_the_error_told_is_the_error_there_is() -> None:
    weight = gaussian(96, 48)
    (result,) = fit_matrices(weight[None], FitSettings(steps=60))
    dense = result.spm.to(torch.float64).to_dense().numpy()
    expected = np.linalg.norm(weight.numpy() - dense) / np.linalg.norm(weight.numpy())
    assert result.error == pytest.approx(expected, rel=1e-6)


def test_not_finite_weights_are_refused() -> None:
    weights = gaussian(1, 8, 8)
    weights[0, 3, 3] = math.nan
    with pytest.raises(FitError, match="NaN"):
        fit_matrices(weights, FitSettings())


def test_a_batch_fits_as_well_as_one_by_one() -> None:
    weights, settings = gaussian(3, 48, 48), FitSettings(steps=150)
    together = [result.error for result in fit_matrices(weights, settings)]
    # another random start for all but the first: errors agree to the spread between starts
    for weight, error in zip(weights, together, strict=True):
        assert fit_matrices(weight[None], settings)[0].error == pytest.approx(error, abs=0.02)


def test_a_diverging_descent_starts_again_with_a_smaller_step() -> None:
    (result,) = fit_matrices(gaussian(1, 48, 48), FitSettings(steps=60, learning_rate=30.0))
    assert result.restarts > 0
    assert result.error < 1.0


def test_the_watch_hears_rising_steps_and_falling_errors() -> None:
    heard: list[StepReport] = []
    fit_matrices(gaussian(1, 40, 40), FitSettings(steps=50), heard.append)
    assert [report.step for report in heard] == sorted(report.step for report in heard)
    errors = [report.error for report in heard]
    assert errors == sorted(errors, reverse=True)
    assert heard[-1].steps == 50


def test_at_twenty_stages_a_gaussian_matrix_is_fitted_better_than_by_svd() -> None:
    weight = gaussian(1, 128, 128)
    (result,) = fit_matrices(weight, FitSettings(stages=20))
    assert result.error < svd_error(weight[0], result.spm.parameter_count)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_svd_error_is_numpys_at_whole_ranks_and_falls_in_between(shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    values = np.linalg.svd(weight.numpy().astype(np.float64), compute_uv=False)
    for rank in (0, 1, 7, min(shape)):
        expected = math.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        assert svd_error(weight, rank * sum(shape)) == pytest.approx(expected, abs=1e-7)
    sizes = range(0, 8 * sum(shape), 13)
    errors = [svd_error(weight, size) for size in sizes]
    assert errors == sorted(errors, reverse=True)
