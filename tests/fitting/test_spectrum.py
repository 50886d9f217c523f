"""What is read from singular values, against numpy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spm_compress.errors import FitError
from spm_compress.fitting.spectrum import spectra

# Shares are squares in float64, whose Gram matrix rounds at 1e-16 of the largest.
TOLERANCE = 1e-10


def gaussian(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 3), st.integers(0, 999), st.sampled_from([1e-200, 1, 1e200])
)
def test_shares_and_norm_are_numpys(m: int, n: int, k: int, seed: int, scale: float) -> None:
    weights = gaussian(k, m, n, seed=seed)
    for weight, found in zip(weights, spectra(torch.from_numpy(weights * scale)), strict=True):
        squares = np.linalg.svd(weight, compute_uv=False) ** 2
        np.testing.assert_allclose(found.shares.numpy(), squares / squares.sum(), atol=TOLERANCE)
        assert found.norm == pytest.approx(np.linalg.norm(weight) * scale, rel=TOLERANCE)
        probability = squares / squares.sum()
        assert found.effective_rank == pytest.approx(math.exp(-(probability * np.log(probability)).sum()), rel=1e-6)


def test_the_tolerance_notices_a_thousandth_in_the_weight() -> None:
    weight = gaussian(9, 12)
    (before,) = spectra(torch.from_numpy(weight)[None])
    weight[0, 0] *= 1.001
    (after,) = spectra(torch.from_numpy(weight)[None])
    assert float((before.shares - after.shares).abs().max()) > 1000 * TOLERANCE


@pytest.mark.parametrize(("m", "n"), [(7, 30), (30, 7), (16, 16)])
@pytest.mark.parametrize("rank", [0, 1, 3, 7])
def test_svd_errors_are_those_of_numpys_reconstruction(m: int, n: int, rank: int) -> None:
    weight = gaussian(m, n)
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    expected = np.linalg.norm(weight - (u[:, :rank] * s[:rank]) @ vt[:rank]) / np.linalg.norm(weight)
    (spectrum,) = spectra(torch.from_numpy(weight)[None])
    assert spectrum.svd_error(rank * (m + n)) == pytest.approx(expected, abs=1e-7)


def test_an_orthogonal_matrix_has_every_rank_and_no_decay() -> None:
    q, _ = np.linalg.qr(gaussian(40, 40))
    (spectrum,) = spectra(torch.from_numpy(q)[None])
    assert spectrum.effective_rank == pytest.approx(40)
    assert spectrum.decay == pytest.approx(1)
    assert spectrum.energy(0.1) == pytest.approx(0.1)
    assert spectrum.rank(1e-7) == 40


@pytest.mark.parametrize("weight", [np.outer(gaussian(20), gaussian(30)), np.full((20, 30), 0.3)])
def test_rank_one_is_one_in_every_figure(weight: np.ndarray) -> None:
    (spectrum,) = spectra(torch.from_numpy(weight)[None].float())
    assert spectrum.rank(torch.finfo(torch.float32).eps) == 1
    assert spectrum.effective_rank == pytest.approx(1, abs=1e-6)
    assert spectrum.energy(0.01) == pytest.approx(1)
    assert math.isinf(spectrum.decay) or spectrum.decay > 1e6
    assert spectrum.svd_error(50) < 1e-6


def test_zero_has_figures_too() -> None:
    (spectrum,) = spectra(torch.zeros(1, 5, 8))
    assert (spectrum.norm, spectrum.effective_rank, spectrum.decay, spectrum.rank(1e-7)) == (0, 0, 1, 0)
    assert spectrum.energy(0.1) == spectrum.svd_error(0) == spectrum.root_mean_square == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(FitError, match="NaN or infinite"):
        spectra(torch.full((1, 2, 2), bad))
    with pytest.raises(FitError, match="has shape"):
        spectra(torch.ones(2, 2))
