"""The balanced form: the same map, in numbers of one size."""

from __future__ import annotations

import torch
from draw import random_spm, structures
from hypothesis import given, settings

from spm_compress.operator import SPM, Mixer, Structure, build_structure, to_canonical, to_general, transpose
from spm_compress.operator.balance import balanced


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


@settings(max_examples=100, deadline=None)
@given(structures())
def test_the_balanced_form_and_two_transpositions_are_the_same_map(structure: Structure) -> None:
    spm = random_spm(structure)
    dense = spm.to_dense()
    assert relative(balanced(spm).to_dense(), dense) < 1e-10
    assert relative(transpose(transpose(spm)).to_dense(), dense) < 1e-12


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
