"""No chain goes below the bound, whatever its numbers; a planted one is allowed to be exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from definition import dense_by_definition, drawn_numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.errors import FitError
from spm_compress.forms import FitSettings, fit_matrices
from spm_compress.forms.spm import SPM, Mixer, Schedule, build_spm
from spm_compress.forms.spm.bound import chain_bound
from spm_compress.forms.spm.closed_form import closed_forms, probe_structure

# A bound of zero is the root of rounding at 1e-16.
EXACT = 1e-7
# Fits are measured in float64 on float32 numbers.
ROUNDING = 1e-6

widths = st.integers(2, 20)


def planted(structure: SPM, seed: int) -> np.ndarray:
    return dense_by_definition(structure, drawn_numbers(structure, seed))


@st.composite
def fits(draw: st.DrawFn) -> tuple[int, int, FitSettings]:
    out = draw(widths)
    into = draw(st.one_of(st.just(out), widths))
    return (
        out,
        into,
        FitSettings(
            stages=draw(st.integers(1, 8)),
            mixer=draw(st.sampled_from([Mixer.GENERAL, Mixer.ROTATION])),
            schedule=draw(st.sampled_from(list(Schedule))),
            block=draw(st.sampled_from([2, 4, 8])),
            steps=120,
            seed=draw(st.integers(0, 3)),
        ),
    )


@settings(max_examples=12)
@given(fits(), st.integers(0, 999))
def test_no_fit_goes_below_the_bound(drawn: tuple[int, int, FitSettings], seed: int) -> None:
    out, into, fit = drawn
    weights = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, out, into)))
    bounds = chain_bound(weights, fit.spm(out, into))
    for result, bound in zip(fit_matrices(weights, fit), bounds.tolist(), strict=True):
        assert 0 <= bound <= result.error + ROUNDING


@settings(max_examples=60)
@given(fits(), st.integers(0, 999))
def test_a_planted_chain_has_the_bound_zero(drawn: tuple[int, int, FitSettings], seed: int) -> None:
    out, into, fit = drawn
    structure = fit.spm(out, into)
    weight = planted(structure, seed)
    assert float(chain_bound(torch.from_numpy(weight)[None], structure)[0]) < EXACT


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_the_tolerance_notices_a_thousandth_in_a_planted_chain(stages: int) -> None:
    structure = build_spm(16, 16, stages=stages, block=4)
    weight = planted(structure, 0)
    weight[3, 5] += 1e-3 * np.linalg.norm(weight)
    assert float(chain_bound(torch.from_numpy(weight)[None], structure)[0]) > 100 * EXACT


@pytest.mark.parametrize("n", [4, 5, 8, 13])
def test_one_cut_by_hand_is_the_bound_of_two_stages(n: int) -> None:
    # Outputs {f, f ^ 2} meet inputs {f, f ^ 1} through feature f alone; what no feature joins is lost.
    structure = build_spm(n, n, stages=2, schedule=Schedule.BUTTERFLY)
    weight = np.random.default_rng(n).normal(size=(n, n))
    kept = 0.0
    for f in range(n):
        rows, columns = ([i for i in (f, f ^ stride) if i < n] for stride in (2, 1))
        kept += np.linalg.svd(weight[np.ix_(rows, columns)], compute_uv=False)[0] ** 2
    least = math.sqrt(1 - kept / (weight**2).sum())
    assert float(chain_bound(torch.from_numpy(weight)[None], structure)[0]) == pytest.approx(least, rel=1e-10)


def test_a_deep_chain_is_not_bounded() -> None:
    structure = build_spm(16, 16, stages=16, block=4)
    weight = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert float(chain_bound(weight, structure)[0]) == 0


def test_scale_and_batch_do_not_matter() -> None:
    structure = build_spm(16, 16, stages=4)
    weights = torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    together = chain_bound(weights * 1e30, structure)
    alone = torch.cat([chain_bound(weight[None], structure) for weight in weights])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)


def test_zero_has_the_bound_zero_and_what_does_not_fit_is_refused() -> None:
    structure = build_spm(8, 8, stages=3)
    assert float(chain_bound(torch.zeros(1, 8, 8), structure)[0]) == 0
    with pytest.raises(FitError, match="do not fit a structure of 8x8"):
        chain_bound(torch.zeros(1, 9, 8), structure)
    with pytest.raises(FitError, match="NaN or infinite"):
        chain_bound(torch.full((1, 8, 8), math.nan), structure)


@settings(max_examples=40)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 999))
def test_the_closed_form_lies_between_its_bound_and_one(m: int, n: int, seed: int) -> None:
    weight = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, m, n)))
    (form,) = closed_forms(weight)
    assert form.bound <= form.error + ROUNDING
    assert form.error <= 1
    # The bound of the weight is that of the weight padded with zeros, which is what it is said to be.
    structure = probe_structure(m, n)
    padded = torch.zeros(1, structure.out_features, structure.in_features, dtype=torch.float64)
    padded[:, :m, :n] = weight
    assert form.bound == pytest.approx(float(chain_bound(padded, structure)[0]), abs=EXACT)


@pytest.mark.parametrize("n", [8, 13, 16])
def test_the_closed_form_of_a_butterfly_is_exact(n: int) -> None:
    (form,) = closed_forms(torch.from_numpy(planted(probe_structure(n, n), 0))[None])
    assert form.error < EXACT
    assert form.bound < EXACT
    assert form.numbers == n * (form.stages + 1)


def test_the_closed_form_of_zero_is_zero() -> None:
    (form,) = closed_forms(torch.zeros(1, 6, 9))
    assert (form.error, form.bound) == (0, 0)
