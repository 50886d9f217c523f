"""Exact conversions, each measured against matrices that share no code with them."""

from __future__ import annotations

import math

import pytest
import torch
from definition import as_arrays, dense_by_definition, dense_of, relative
from draw import STAGES, any_forms, laid_out, random_operator, structures
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.codecs import FLOAT16, FLOAT32
from spm_compress.errors import FitError
from spm_compress.forms import Form, Operator
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.spm.canonical import to_canonical, to_general, transpose
from spm_compress.forms.sum import Sum

# The quotients of float64 numbers; a Gaussian number near zero makes a scale near 1e6 and takes as many digits.
LOSSLESS = 1e-9
# A tenth of a percent of one number has to show.
NOTICEABLE = 1e-5

SHAPES = [(12, 12), (6, 20), (20, 6), (7, 7), (1, 9), (9, 1), (1, 1)]


def well_conditioned(structure: SPM, seed: int = 0, dtype: torch.dtype = torch.float64) -> Operator:
    """Diagonal numbers and scales between 0.5 and 1.5, so that no digit is lost to a near-zero divisor."""
    generator = torch.Generator().manual_seed(seed)
    arrays = {}
    for name, shape in structure.shapes.items():
        array = torch.rand(shape, generator=generator, dtype=dtype)
        arrays[name] = array + 0.5 if name.endswith((".diagonal", ".scales")) else array
    return Operator(structure, arrays)


def canonical_of(operator: Operator) -> Operator:
    return to_canonical(spm_of(operator), operator.arrays)


def spm_of(operator: Operator) -> SPM:
    assert isinstance(operator.form, SPM)
    return operator.form


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_canonical_gauge_is_lossless_in_float64(into: int, out: int, mixer: Mixer, schedule: Schedule) -> None:
    for stages in (1, 5, 12):
        spm = well_conditioned(build_spm(into, out, stages=stages, mixer=mixer, schedule=schedule, block=4))
        canonical = canonical_of(spm)
        assert relative(dense_of(canonical), dense_of(spm)) < LOSSLESS
        assert relative(canonical.to_dense(), dense_of(spm)) < LOSSLESS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_canonical_gauge_is_lossless_in_float32_at_twenty_stages(seed: int, width: int) -> None:
    spm = well_conditioned(build_spm(width, width, stages=20, block=8), seed, torch.float32)
    canonical = canonical_of(spm)
    assert all(array.dtype == torch.float32 for array in canonical.arrays.values())
    # twenty roundings of 6e-8, and those of the canonical numbers
    assert relative(canonical.to_dense(), dense_of(spm)) < 1e-5


def test_the_tolerances_notice_a_thousandth_in_one_number() -> None:
    spm = well_conditioned(build_spm(12, 12, stages=8, block=4))
    canonical = canonical_of(spm)
    for name, at in (("0.off_diagonal", (3, 5)), ("0.off_diagonal", (7, 0)), ("0.scales", (0, 2))):
        numbers = as_arrays(canonical.arrays)
        numbers[name][at] *= 1.001
        assert relative(dense_by_definition(canonical.form, numbers), dense_of(spm)) > NOTICEABLE > LOSSLESS


def test_canonical_gauge_halves_the_numbers_of_the_stages() -> None:
    for into, out, ends in ((48, 48, 48), (24, 48, 48), (48, 24, 48 + 24)):
        spm = random_operator(build_spm(into, out, stages=10, block=8))
        # the rest is one scaling at the end, and one before a fold, which lets no scale pass
        assert canonical_of(spm).parameter_count == spm.parameter_count // 2 + ends


@settings(max_examples=80, deadline=None)
@given(structures())
def test_canonical_numbers_have_the_shapes_of_the_canonical_form(structure: SPM) -> None:
    spm = well_conditioned(structure)
    for canonical in (canonical_of(spm), to_canonical(structure, spm.arrays, FLOAT16), spm.stored()):
        held = {name: tuple(array.shape) for name, array in canonical.arrays.items()}
        assert held == canonical.form.shapes
        assert canonical.parameter_count == sum(math.prod(shape) for shape in held.values())
    if structure.mixer is Mixer.ROTATION:
        assert spm.stored().form == structure  # which has half as many numbers
        structure = spm_of(to_general(structure, spm.arrays))
    assert canonical_of(spm).form == structure.stored(FLOAT32)
    assert to_canonical(structure, to_general(structure, spm.arrays).arrays, FLOAT16).form == structure.stored(FLOAT16)


@settings(max_examples=80, deadline=None)
@given(any_forms())
def test_the_stored_form_of_any_operator_is_the_form_announced_and_the_same_map(form: Form) -> None:
    parts = form.parts if isinstance(form, Sum) else (form,)
    each = [well_conditioned(part) if isinstance(part, SPM) else random_operator(part) for part in parts]
    arrays = (
        {f"{i}.{name}": array for i, part in enumerate(each) for name, array in part.arrays.items()}
        if isinstance(form, Sum)
        else each[0].arrays
    )
    operator = Operator(form, arrays)
    stored = operator.stored()
    assert stored.form == form.stored(FLOAT32)
    assert {name: tuple(array.shape) for name, array in stored.arrays.items()} == stored.form.shapes
    assert relative(dense_of(stored), dense_of(operator)) < LOSSLESS


def test_conversions_leave_the_numbers_they_are_given_alone() -> None:
    for mixer, gauge in STAGES:
        spm = random_operator(laid_out(10, 6, mixer, gauge, stages=6, block=4))
        before = {name: array.clone() for name, array in spm.arrays.items()}
        form = spm_of(spm)
        to_canonical(form, spm.arrays), to_general(form, spm.arrays), transpose(form, spm.arrays)
        assert all(torch.equal(spm.arrays[name], kept) for name, kept in before.items())


def test_canonical_gauge_of_a_canonical_operator_is_itself() -> None:
    spm = random_operator(build_spm(10, 6, stages=6).stored(FLOAT32))
    for canonical in (canonical_of(spm), spm.stored()):
        assert canonical.form is spm.form
        assert canonical.arrays is spm.arrays


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("swaps", [1, 2, 3, 4, 5, 6, 8, 12, 20])
def test_chains_of_pure_swaps_convert_or_are_refused(swaps: int, dtype: torch.dtype) -> None:
    spm = well_conditioned(build_spm(16, 16, stages=20, block=8), dtype=dtype)
    spm.arrays["0.diagonal"][:swaps] = 0
    try:
        canonical = canonical_of(spm)
    except FitError:
        assert swaps > 2, "the stand-in for one or two zeros fits any dtype"
        assert spm.stored().form == spm.form, "twice the numbers, but the same map"
        return
    # 2**-26 of each off-diagonal number stands in for a zero, and float32 rounds at 6e-8
    assert relative(canonical.to_dense(), dense_of(spm)) < 1e-5


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize(("into", "out"), [(8, 8), (4, 12), (12, 4)])
def test_a_feature_that_is_silenced_converts_or_is_refused(into: int, out: int, mixer: Mixer) -> None:
    for chain in range(len(build_spm(into, out, stages=8, mixer=mixer, block=4).chains)):
        spm = well_conditioned(build_spm(into, out, stages=8, mixer=mixer, block=4))
        if mixer is Mixer.GENERAL:
            silenced = [spm.arrays[f"{chain}.diagonal"][3], spm.arrays[f"{chain}.off_diagonal"][3]]
        else:
            silenced = list(spm.arrays.get(f"{chain}.scales", ()))
        for array in silenced:
            array[1] = 0
        try:
            canonical = canonical_of(spm)
        except FitError:
            continue  # a later stage fills the silenced feature again: no scale of it can
        assert relative(dense_of(canonical), dense_of(spm)) < 1e-6


def test_silence_that_lasts_converts() -> None:
    spm = well_conditioned(build_spm(8, 8, stages=5))
    for array in spm.arrays.values():
        array.zero_()
    assert not dense_of(canonical_of(spm)).any()
    spm = well_conditioned(build_spm(8, 8, stages=5))
    for name in ("0.diagonal", "0.off_diagonal"):
        spm.arrays[name][4, 1] = 0  # the last stage: nothing mixes in after it
    assert relative(dense_of(canonical_of(spm)), dense_of(spm)) < LOSSLESS


def test_general_stages_in_the_free_gauge_are_the_same_map() -> None:
    for mixer, gauge in STAGES:
        for into, out in SHAPES:
            spm = random_operator(laid_out(into, out, mixer, gauge, stages=7, block=4))
            general = to_general(spm_of(spm), spm.arrays)
            assert (spm_of(general).mixer, spm_of(general).gauge) == (Mixer.GENERAL, Gauge.FREE)
            assert relative(dense_of(general), dense_of(spm)) < 1e-12


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_transposed_operator_is_the_transposed_matrix(
    into: int, out: int, mixer: Mixer, gauge: Gauge, schedule: Schedule
) -> None:
    for stages in (1, 4, 11):
        spm = random_operator(laid_out(into, out, mixer, gauge, stages=stages, schedule=schedule, block=4))
        turned = spm.transposed()
        expected = dense_of(spm).T
        assert turned.shape == (into, out)
        assert relative(dense_of(turned), expected) < 1e-12
        assert relative(turned.to_dense(), expected) < 1e-12
        assert relative(turned.transposed().to_dense(), expected.T) < 1e-12
        assert spm_of(turned).stages == stages
        assert (spm_of(turned).mixer, spm_of(turned).gauge) == (mixer, Gauge.FREE)
        if gauge is Gauge.FREE:
            assert turned.parameter_count == spm.parameter_count


@settings(max_examples=60, deadline=None)
@given(any_forms())
def test_any_transposed_operator_is_the_transposed_matrix(form: Form) -> None:
    operator = random_operator(form)
    turned = operator.transposed()
    assert turned.shape == operator.shape[::-1]
    assert relative(dense_of(turned), dense_of(operator).T) < 1e-12
    assert relative(turned.transposed().to_dense(), dense_of(operator)) < 1e-12
    if isinstance(form, LowRank):
        assert turned.form == LowRank(form.out_features, form.in_features, form.rank)


@settings(max_examples=40, deadline=None)
@given(structures())
def test_converting_a_transposed_operator_is_lossless(structure: SPM) -> None:
    spm = well_conditioned(structure)
    assert relative(canonical_of(spm.transposed()).to_dense(), dense_of(spm).T) < LOSSLESS


def test_transposing_moves_scales_with_their_order() -> None:
    # Scales between two groups with an order between: the one place where they have to be permuted.
    spm = random_operator(build_spm(10, 10, stages=6, mixer=Mixer.ROTATION, block=4))
    assert spm_of(spm).chains[0].scales == (1,)
    turned = spm.transposed()
    assert relative(dense_of(turned), dense_of(spm).T) < 1e-12
    numbers = as_arrays(turned.arrays)
    numbers["0.scales"] = spm.arrays["0.scales"].numpy()  # as if they had stayed in place
    assert relative(dense_by_definition(turned.form, numbers), dense_of(spm).T) > NOTICEABLE
