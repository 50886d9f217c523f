"""Exact conversions, each measured against matrices that share no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from definition import dense_by_definition, dense_of, relative
from draw import random_spm, structures
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.errors import FitError
from spm_compress.operator import SPM, Mixer, Schedule, Structure, build_structure, to_canonical, to_general, transpose

# The quotients of float64 numbers; a Gaussian number near zero makes a scale near 1e6 and takes as many digits.
LOSSLESS = 1e-9
# A tenth of a percent of one number has to show.
NOTICEABLE = 1e-5

SHAPES = [(12, 12), (6, 20), (20, 6), (7, 7), (1, 9), (9, 1), (1, 1)]


def well_conditioned(structure: Structure, seed: int = 0, dtype: torch.dtype = torch.float64) -> SPM:
    """Direct numbers between 0.5 and 1.5, so that no digit is lost to a near-zero divisor."""
    generator = torch.Generator().manual_seed(seed)
    numbers = []
    for named in structure.shapes():
        own = {name: torch.rand(shape, generator=generator, dtype=dtype) for name, shape in named.items()}
        numbers.append({name: array + 0.5 if name in ("direct", "diagonals") else array for name, array in own.items()})
    return SPM(structure, numbers)


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_canonical_form_is_lossless_in_float64(into: int, out: int, mixer: Mixer, schedule: Schedule) -> None:
    for stages in (1, 5, 12):
        spm = well_conditioned(build_structure(into, out, stages=stages, mixer=mixer, schedule=schedule, block=4))
        canonical = to_canonical(spm)
        assert relative(dense_of(canonical), dense_of(spm)) < LOSSLESS
        assert relative(canonical.to_dense(), dense_of(spm)) < LOSSLESS


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 40))
def test_canonical_form_is_lossless_in_float32_at_twenty_stages(seed: int, width: int) -> None:
    spm = well_conditioned(build_structure(width, width, stages=20, block=8), seed, torch.float32)
    canonical = to_canonical(spm)
    assert all(array.dtype == torch.float32 for array in canonical.numbers[0].values())
    # twenty roundings of 6e-8, and those of the canonical numbers
    assert relative(canonical.to_dense(), dense_of(spm)) < 1e-5


def test_the_tolerances_notice_a_thousandth_in_one_number() -> None:
    spm = well_conditioned(build_structure(12, 12, stages=8, block=4))
    canonical = to_canonical(spm)
    for name, at in (("cross", (3, 5)), ("cross", (7, 0)), ("diagonals", (0, 2))):
        numbers = [{n: array.clone() for n, array in canonical.numbers[0].items()}]
        numbers[0][name][at] *= 1.001
        assert relative(dense_of(SPM(canonical.structure, numbers)), dense_of(spm)) > NOTICEABLE > LOSSLESS


def test_canonical_form_halves_the_numbers_of_the_stages() -> None:
    for into, out, ends in ((48, 48, 48), (24, 48, 48), (48, 24, 48 + 24)):
        spm = random_spm(build_structure(into, out, stages=10, block=8))
        # the rest is one diagonal at the end, and one before a fold, which lets no scale pass
        assert to_canonical(spm).parameter_count == spm.parameter_count // 2 + ends


@settings(max_examples=80, deadline=None)
@given(structures())
def test_canonical_numbers_have_the_shapes_of_the_canonical_structure(structure: Structure) -> None:
    spm = well_conditioned(structure)
    canonical = to_canonical(spm)
    assert canonical.structure == structure.canonical()
    held = tuple({name: tuple(array.shape) for name, array in named.items()} for named in canonical.numbers)
    assert held == canonical.structure.shapes()
    assert canonical.parameter_count == sum(math.prod(shape) for named in held for shape in named.values())


def test_conversions_leave_the_numbers_they_are_given_alone() -> None:
    for mixer in Mixer:
        spm = random_spm(build_structure(10, 6, stages=6, mixer=mixer, block=4))
        before = [{name: array.clone() for name, array in named.items()} for named in spm.numbers]
        to_canonical(spm), to_general(spm), transpose(spm)
        for named, kept in zip(spm.numbers, before, strict=True):
            assert all(torch.equal(named[name], kept[name]) for name in kept)


def test_canonical_form_of_a_canonical_operator_is_itself() -> None:
    spm = random_spm(build_structure(10, 6, stages=6, mixer=Mixer.CANONICAL))
    assert to_canonical(spm) is spm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("swaps", [1, 2, 3, 4, 5, 6, 8, 12, 20])
def test_chains_of_pure_swaps_convert_or_are_refused(swaps: int, dtype: torch.dtype) -> None:
    spm = well_conditioned(build_structure(16, 16, stages=20, block=8), dtype=dtype)
    spm.numbers[0]["direct"][:swaps] = 0
    try:
        canonical = to_canonical(spm)
    except FitError:
        assert swaps > 2, "the stand-in for one or two zeros fits any dtype"
        return
    # 2**-26 of each cross number stands in for a zero, and float32 rounds at 6e-8
    assert relative(canonical.to_dense(), dense_of(spm)) < 1e-5


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize(("into", "out"), [(8, 8), (4, 12), (12, 4)])
def test_a_feature_that_is_silenced_converts_or_is_refused(into: int, out: int, mixer: Mixer) -> None:
    for chain in range(len(build_structure(into, out, stages=8, mixer=mixer, block=4).chains)):
        spm = well_conditioned(build_structure(into, out, stages=8, mixer=mixer, block=4))
        named = spm.numbers[chain]
        for array in (named["direct"][3], named["cross"][3]) if mixer is Mixer.GENERAL else named.get("diagonals", ()):
            array[1] = 0
        try:
            canonical = to_canonical(spm)
        except FitError:
            continue  # a later stage fills the silenced feature again: no scale of it can
        assert relative(dense_of(canonical), dense_of(spm)) < 1e-6


def test_silence_that_lasts_converts() -> None:
    spm = well_conditioned(build_structure(8, 8, stages=5))
    for array in spm.numbers[0].values():
        array.zero_()
    assert not dense_of(to_canonical(spm)).any()
    spm = well_conditioned(build_structure(8, 8, stages=5))
    spm.numbers[0]["direct"][4, 1] = spm.numbers[0]["cross"][4, 1] = 0  # the last stage: nothing mixes in after it
    assert relative(dense_of(to_canonical(spm)), dense_of(spm)) < LOSSLESS


def test_general_form_is_the_same_map() -> None:
    for mixer in Mixer:
        for into, out in SHAPES:
            spm = random_spm(build_structure(into, out, stages=7, mixer=mixer, block=4))
            general = to_general(spm)
            assert general.structure.mixer is Mixer.GENERAL
            assert relative(dense_of(general), dense_of(spm)) < 1e-12


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("mixer", list(Mixer))
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_transposed_operator_is_the_transposed_matrix(into: int, out: int, mixer: Mixer, schedule: Schedule) -> None:
    for stages in (1, 4, 11):
        spm = random_spm(build_structure(into, out, stages=stages, mixer=mixer, schedule=schedule, block=4))
        turned = transpose(spm)
        expected = dense_of(spm).T
        assert turned.shape == (into, out)
        assert relative(dense_of(turned), expected) < 1e-12
        assert relative(turned.to_dense(), expected) < 1e-12
        assert relative(transpose(turned).to_dense(), expected.T) < 1e-12
        assert turned.structure.stages == stages
        kept = Mixer.GENERAL if mixer is Mixer.CANONICAL else mixer
        assert turned.structure.mixer is kept
        if mixer is kept:
            assert turned.parameter_count == spm.parameter_count


@settings(max_examples=40, deadline=None)
@given(structures())
def test_converting_a_transposed_operator_is_lossless(structure: Structure) -> None:
    spm = well_conditioned(structure)
    assert relative(to_canonical(transpose(spm)).to_dense(), dense_of(spm).T) < LOSSLESS


def test_transposing_a_diagonal_moves_it_with_its_order() -> None:
    # D between two groups with an order between: the one place where a diagonal has to be permuted.
    spm = random_spm(build_structure(10, 10, stages=6, mixer=Mixer.ROTATION, block=4))
    assert spm.structure.chains[0].diagonals == (1,)
    turned = transpose(spm)
    assert relative(dense_of(turned), dense_of(spm).T) < 1e-12
    numbers = [{name: array.numpy().copy() for name, array in named.items()} for named in turned.numbers]
    numbers[0]["diagonals"] = spm.numbers[0]["diagonals"].numpy()  # as if it had stayed in place
    assert relative(dense_by_definition(turned.structure, numbers), np.asarray(dense_of(spm).T)) > NOTICEABLE
