"""The best form of a size: never worse than the truncated SVD in the same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.codecs import FLOAT32
from spm_compress.fitting import svd_error
from spm_compress.forms import FitSettings, candidates, fit_matrices
from spm_compress.forms.form import numbers_of
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Mixer
from spm_compress.forms.sum import Sum


def matrix(shape: tuple[int, int], power: float, seed: int) -> torch.Tensor:
    """Singular values k^-power between random orthonormal factors."""
    generator = torch.Generator().manual_seed(seed)
    k = min(shape)
    left, right = (torch.linalg.qr(torch.randn(n, k, generator=generator)).Q for n in shape)
    return (left * torch.arange(1, k + 1) ** -power) @ right.T


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from([(48, 48), (64, 24), (24, 64)]),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0]),
    st.sampled_from([2, 6, 12]),
    st.sampled_from([Mixer.GENERAL, None]),
    st.integers(0, 3),
)
def test_at_equal_size_the_fit_is_never_worse_than_the_svd(
    shape: tuple[int, int], power: float, stages: int, mixer: Mixer | None, seed: int
) -> None:
    weight = matrix(shape, power, seed)
    asked = FitSettings(stages=stages, mixer=mixer, rank=None, steps=30, block=8)
    (result,) = fit_matrices(weight[None], asked)
    most = numbers_of(replace(asked, mixer=Mixer.GENERAL, rank=0).spm(*shape).stored(FLOAT32))
    assert result.operator.parameter_count <= most
    # 1e-5: singular values in float32
    assert result.error <= svd_error(weight, most // sum(shape) * sum(shape)) + 1e-5


@pytest.mark.parametrize(("power", "is_svd"), [(4.0, True), (0.0, False)])
def test_fast_decay_belongs_to_the_svd_and_a_flat_spectrum_to_the_stages(power: float, is_svd: bool) -> None:
    (result,) = fit_matrices(matrix((64, 64), power, 0)[None], FitSettings(stages=12, rank=None, steps=200, block=8))
    assert isinstance(result.operator.form, LowRank) is is_svd
    assert (result.start == "svd") is is_svd


def test_forms_of_one_size() -> None:
    asked = FitSettings(stages=20, mixer=None, rank=None)
    found = candidates(asked, 96, 64)
    most = numbers_of(asked.spm(96, 64).stored(FLOAT32))
    assert max(numbers_of(form.stored(FLOAT32)) for form in found) <= most
    alone = [form for form in found if isinstance(form, SPM)]
    beside = [form.parts for form in found if isinstance(form, Sum)]
    assert {form.mixer for form in alone} == {Mixer.GENERAL, Mixer.ROTATION}
    assert {spm.mixer for spm, _ in beside if isinstance(spm, SPM)} == {Mixer.GENERAL, Mixer.ROTATION}
    assert [form for form in found if isinstance(form, LowRank)] == [LowRank(64, 96, most // (96 + 64))]
    # a quarter, a half and three quarters of the numbers for the low-rank term
    ranks = {term.rank for _, term in beside if isinstance(term, LowRank)}
    assert ranks == {round(share * (most // (96 + 64))) for share in (0.25, 0.5, 0.75)}
    given = FitSettings(stages=7, rank=3)
    assert candidates(given, 96, 64) == [Sum((given.spm(96, 64), LowRank(64, 96, 3)))]


def test_a_low_rank_term_of_given_rank_comes_on_top() -> None:
    weight = matrix((48, 48), 1.0, 0)
    plain, joined = (fit_matrices(weight[None], FitSettings(stages=6, rank=r, block=8))[0] for r in (0, 4))
    assert joined.operator.parameter_count == plain.operator.parameter_count + 4 * 96
    assert joined.error < min(plain.error, svd_error(weight, 4 * 96))


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("seed", range(3))
def test_of_a_descent_and_a_closed_form_the_better_one_is_taken(steps: int, seed: int) -> None:
    """A closed form is done at once: against a quarter of a descent it would win what it loses in the end."""
    weight = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(seed))
    kinds = ("spm", "monarch", "low_rank")

    def error(*forms: str) -> float:
        return fit_matrices(weight, FitSettings(stages=10, steps=steps, forms=forms))[0].error

    assert error(*kinds) == min(error(kind) for kind in kinds)


def test_a_dense_map_keeps_to_the_size_unless_it_is_asked_for_alone() -> None:
    def kinds(stages: int, *forms: str) -> list[str]:
        return [form.kind for form in candidates(FitSettings(stages=stages, forms=forms), 64, 64)]

    assert kinds(10, "spm", "dense") == ["spm"]
    assert kinds(64, "spm", "dense") == ["spm", "dense"]
    assert kinds(10, "dense") == ["dense"]


@pytest.mark.parametrize("shape", [(40, 24), (24, 40)])
def test_a_dense_map_is_the_weight_to_the_bit(shape: tuple[int, int]) -> None:
    weight = (
        torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 7.0])[:, None, None]
    )
    for each, found in zip(weight, fit_matrices(weight, FitSettings(forms=("dense",))), strict=True):
        assert torch.equal(found.operator.to_dense(), each)
        assert found.error == 0
