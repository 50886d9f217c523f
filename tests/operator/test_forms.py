"""Canonical, general, balanced and transposed forms are the same map."""

from __future__ import annotations

import pytest
import torch
from draw import random_spm, structures
from hypothesis import given, settings

from spm_compress.errors import FitError
from spm_compress.operator import SPM, Mixer, Structure, build_structure, to_canonical, to_general, transpose
from spm_compress.operator.balance import balanced


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


@settings(max_examples=100, deadline=None)
@given(structures())
def test_every_form_is_the_same_map(structure: Structure) -> None:
    spm = random_spm(structure)
    dense = spm.to_dense()
    # Random numbers near zero make scales of 1e+-6, which costs that many digits of float64's sixteen.
    assert relative(to_canonical(spm).to_dense(), dense) < 1e-8
    assert relative(to_general(spm).to_dense(), dense) < 1e-12
    assert relative(balanced(spm).to_dense(), dense) < 1e-10
    assert relative(transpose(spm).to_dense(), dense.T) < 1e-12
    assert relative(transpose(transpose(spm)).to_dense(), dense) < 1e-12


@settings(max_examples=60, deadline=None)
@given(structures())
def test_the_canonical_structure_is_that_of_the_canonical_numbers(structure: Structure) -> None:
    canonical = to_canonical(random_spm(structure))
    shapes = tuple({name: tuple(array.shape) for name, array in named.items()} for named in canonical.numbers)
    assert canonical.structure.mixer is Mixer.CANONICAL
    assert canonical.structure.shapes() == shapes


def test_canonical_form_is_lossless_in_float32_at_twenty_stages() -> None:
    spm = random_spm(build_structure(384, 384, stages=20), dtype=torch.float32)
    canonical = to_canonical(spm)
    exact = spm.to(torch.float64).to_dense()
    # as far from the exact product as the form it came from, up to a small factor
    assert relative(canonical.to_dense().double(), exact) < 5e-6
    assert canonical.parameter_count == 21 * 384 == spm.parameter_count // 2 + 384


def test_canonical_form_takes_pure_swaps() -> None:
    structure = build_structure(16, 16, stages=3, block=8)
    spm = random_spm(structure)
    spm.numbers[0]["direct"][1] = 0.0  # stage 1 exchanges the features of every pair
    assert relative(to_canonical(spm).to_dense(), spm.to_dense()) < 1e-6


def test_canonical_form_refuses_what_leaves_the_range_of_the_dtype() -> None:
    structure = build_structure(16, 16, stages=12, block=16)
    spm = random_spm(structure, dtype=torch.float32)
    spm.numbers[0]["direct"].zero_()
    with pytest.raises(FitError, match="general form"):
        to_canonical(spm)


def test_rotations_stay_rotations_when_transposed() -> None:
    spm = random_spm(build_structure(40, 24, stages=9, mixer=Mixer.ROTATION, block=8))
    turned = transpose(spm)
    assert turned.structure.mixer is Mixer.ROTATION
    assert turned.parameter_count == spm.parameter_count


def test_balanced_stages_have_equal_energy_where_canonical_ones_do_not() -> None:
    canonical = to_canonical(random_spm(build_structure(64, 64, stages=10), dtype=torch.float64))
    even = balanced(canonical)

    def spread(spm: SPM) -> float:
        named = to_general(spm).numbers[0]
        energy = named["direct"].square().sum(1) + named["cross"].square().sum(1)
        return float(energy.max() / energy.min())

    assert spread(even) < 1.5 < 100 < spread(canonical)
