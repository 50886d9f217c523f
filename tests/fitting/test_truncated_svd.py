"""The yardstick: the error of a truncated SVD of a given number of stored numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import gaussian

from spm_compress.fitting import svd_error

# Squared singular values of float64 round at 1e-16 of the largest: the root of a rest of zero at 1e-8.
TOLERANCE = 1e-7


def numpy_error(weight: torch.Tensor, rank: int) -> float:
    """Reconstruct from the leading `rank` singular triples and measure."""
    matrix = weight.double().numpy()
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return float(np.linalg.norm(matrix - best) / np.linalg.norm(matrix))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 24), st.integers(0, 999))
def test_whole_ranks_are_numpys(m: int, n: int, rank: int, seed: int) -> None:
    weight = gaussian(m, n, seed=seed)
    assert svd_error(weight, rank * (m + n)) == pytest.approx(numpy_error(weight, rank), abs=TOLERANCE)


def test_the_tolerance_notices_a_thousandth_in_the_weight() -> None:
    weight = gaussian(12, 20)
    expected = numpy_error(weight, 3)
    weight[5, 7] += 0.01  # far less than a thousandth of the norm, 15.5
    assert abs(svd_error(weight, 3 * 32) - expected) > 10 * TOLERANCE


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 16), st.integers(1, 16), st.integers(0, 999))
def test_more_numbers_never_cost_error(m: int, n: int, seed: int) -> None:
    weight = gaussian(m, n, seed=seed)
    errors = [svd_error(weight, size) for size in range(0, (min(m, n) + 2) * (m + n), max(1, (m + n) // 5))]
    assert errors[0] == pytest.approx(1, abs=TOLERANCE)
    assert errors == sorted(errors, reverse=True)
    assert svd_error(weight, m * n + m + n + min(m, n) ** 2) <= TOLERANCE


def test_between_two_ranks_the_squared_error_is_a_line() -> None:
    weight = gaussian(10, 14)
    low, high = numpy_error(weight, 2) ** 2, numpy_error(weight, 3) ** 2
    for part in (0.25, 0.5, 0.75):
        numbers = round((2 + part) * 24)
        assert svd_error(weight, numbers) == pytest.approx(math.sqrt(low + part * (high - low)), abs=TOLERANCE)


@pytest.mark.parametrize("shape", [(1, 1), (5, 9), (9, 5)])
@pytest.mark.parametrize("numbers", [0, 7, 1000])
def test_a_zero_matrix_has_no_error(shape: tuple[int, int], numbers: int) -> None:
    assert svd_error(torch.zeros(shape), numbers) == 0


def test_low_rank_matrices_need_their_rank_alone() -> None:
    weight = gaussian(20, 2) @ gaussian(2, 30, seed=1)
    assert svd_error(weight, 2 * 50) <= TOLERANCE
    assert svd_error(weight, 1 * 50) > 0.1


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1e-6, 3.0, 1e6]), st.integers(0, 200))
def test_neither_scale_nor_transposing_matters(seed: int, scale: float, numbers: int) -> None:
    weight = gaussian(8, 13, seed=seed)
    expected = svd_error(weight, numbers)
    assert svd_error(weight.T, numbers) == pytest.approx(expected, abs=TOLERANCE)
    assert svd_error(weight * scale, numbers) == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_short_dtypes_are_measured_in_float64(dtype: torch.dtype) -> None:
    weight = gaussian(12, 20).to(dtype)
    assert svd_error(weight, 4 * 32) == pytest.approx(numpy_error(weight, 4), abs=TOLERANCE)
