"""Stages as angles of few bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import gaussian

from spm_compress.codecs import integer
from spm_compress.fitting.objective import Objective
from spm_compress.forms import FitSettings, Operator, StoredOperator, fit_matrices
from spm_compress.forms.form import relative_error
from spm_compress.forms.spm import SPM, Mixer, Schedule, build_spm
from spm_compress.forms.spm.structure import Gauge


def drawn(form: SPM, seed: int) -> Operator:
    generator = torch.Generator().manual_seed(seed)
    return Operator(form, {name: torch.randn(shape, generator=generator) for name, shape in form.shapes.items()})


@settings(max_examples=40)
@given(
    st.integers(2, 40),
    st.integers(2, 40),
    st.integers(1, 14),
    st.sampled_from(Mixer),
    st.sampled_from(Schedule),
    st.integers(0, 3),
)
def test_eight_bits_are_nearly_the_map_itself(
    out: int, into: int, stages: int, mixer: Mixer, schedule: Schedule, seed: int
) -> None:
    operator = drawn(build_spm(into, out, stages=stages, mixer=mixer, schedule=schedule, block=8, seed=seed), seed)
    found = StoredOperator.of(operator, integer(8))
    dense = operator.to_dense()
    assert float((found.decoded().to_dense() - dense).norm() / dense.norm()) < 0.05
    assert {codec.name for codec in found.codecs.values()} <= {"angle(8)", "angle(8,whole)", "scales"}


@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64), (50, 30)])
@pytest.mark.parametrize("mixer", Mixer)
def test_fewer_bits_lose_more_and_the_end_is_fitted_to_the_weight(shape: tuple[int, int], mixer: Mixer) -> None:
    weight = gaussian(*shape)
    (result,) = fit_matrices(weight[None], FitSettings(stages=12, steps=60, block=8, mixer=mixer))
    target = Objective(weight[None])
    errors = [
        relative_error(weight, StoredOperator.of(result.operator, integer(b), target).decoded()) for b in (8, 6, 4)
    ]
    assert errors[0] < result.error + 1e-3
    assert errors == sorted(errors)
    alone = relative_error(weight, StoredOperator.of(result.operator, integer(4)).decoded())
    assert errors[2] <= alone + (0 if mixer is Mixer.GENERAL else 1e-3)  # a rotation may have no scale at its end


def test_what_is_stored_is_a_code_a_feature_and_stage_and_scales_in_half_the_bytes() -> None:
    form = build_spm(64, 64, stages=12)
    stored = StoredOperator.of(drawn(form, 0), integer(5))
    assert isinstance(stored.form, SPM) and stored.form.gauge is Gauge.POLAR
    assert stored.nbytes == 12 * 64 * 5 // 8 + 2 * 64 + 4


def test_stored_again_nothing_changes() -> None:
    weight = gaussian(48, 48)
    (result,) = fit_matrices(weight[None], FitSettings(stages=10, steps=40, block=8))
    first = StoredOperator.of(result.operator, integer(5)).decoded()
    trained = first.form.trainable(first.arrays)  # as a live layer has it
    again = StoredOperator.of(trained, integer(5)).decoded()
    assert torch.equal(again.arrays["0.directions"], first.arrays["0.directions"])
    torch.testing.assert_close(again.to_dense(), first.to_dense(), rtol=1e-3, atol=1e-5)


def test_inputs_that_matter_more_get_more_of_the_angles() -> None:
    weight, mixing = gaussian(32, 32), gaussian(32, 32, seed=1) * torch.logspace(-2, 0, 32)[:, None]
    covariance = mixing @ mixing.T + 1e-4 * torch.eye(32)
    (result,) = fit_matrices(weight[None], FitSettings(stages=20, steps=60, block=8), covariances=covariance[None])

    def lost(target: Objective) -> float:
        missed = StoredOperator.of(result.operator, integer(4), target).decoded().to_dense() - weight
        return float((missed @ covariance * missed).sum())

    assert lost(Objective(weight[None], covariance[None])) < lost(Objective(weight[None]))
