"""Moments of inputs that are seen batch by batch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from spm_compress.calibration.moments import Sums


@given(st.lists(st.integers(0, 7), min_size=1, max_size=6).filter(sum), st.floats(-1e3, 1e3))
def test_any_split_gives_the_moments_of_the_whole(sizes: list[int], offset: float) -> None:
    rows = np.random.default_rng(sum(sizes)).standard_normal((sum(sizes), 5)) * [1, 2, 3, 4, 5] + offset
    rows = rows.astype(np.float32)
    sums = Sums()
    for batch in torch.from_numpy(rows).split(sizes):
        sums.add(batch, batch)
    found = sums.moments()
    assert found.rows == len(rows)
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-5, atol=1e-4)
    # The offset is 1000 times the deviations: without an origin near the mean nothing of them would be left.
    np.testing.assert_allclose(found.covariance, np.cov(exact, rowvar=False, bias=True), rtol=1e-4, atol=1e-3)


def test_two_streams_give_their_cross_covariance() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.standard_normal((50, 3)).astype(np.float32), draw.standard_normal((50, 4)).astype(np.float32)
    sums = Sums()
    for i in range(0, 50, 20):
        sums.add(torch.from_numpy(a[i : i + 20]), torch.from_numpy(b[i : i + 20]))
    np.testing.assert_allclose(sums.covariance(), (a - a.mean(0)).T @ (b - b.mean(0)) / 50, atol=1e-6)
