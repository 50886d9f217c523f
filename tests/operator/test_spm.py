"""The operator against its definition: stage by stage, group by group, dense."""

from __future__ import annotations

import numpy as np
import torch
from draw import random_spm, structures
from hypothesis import given, settings
from oracle import dense_matrix

from spm_compress.operator import SPM, Mixer, Structure, build_structure
from spm_compress.operator.spm import apply_stages

# Float64 rounding over at most 14 stages is near 1e-14 of the norm; a 0.1 % error in one number is far above.
TOLERANCE = 1e-11


def definition(spm: SPM) -> np.ndarray:
    structure = spm.structure
    chains = [
        (c.width, [(g.order.indices(c.width).numpy(), g.strides) for g in c.groups], c.diagonals)
        for c in structure.chains
    ]
    numbers = [{name: array.numpy() for name, array in named.items()} for named in spm.numbers]
    return dense_matrix(structure.in_features, structure.out_features, structure.mixer.value, chains, numbers)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))


@settings(max_examples=150, deadline=None)
@given(structures())
def test_fused_equals_staged_equals_definition(structure: Structure) -> None:
    spm = random_spm(structure)
    expected = definition(spm)
    x = torch.randn(structure.in_features, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert relative(spm.to_dense().numpy(), expected) < TOLERANCE
    assert relative(spm.matmul(x).numpy(), expected @ x.numpy()) < TOLERANCE
    assert relative(apply_stages(structure, spm.numbers, x).numpy(), expected @ x.numpy()) < TOLERANCE


def test_the_tolerance_notices_one_number_off_by_a_thousandth() -> None:
    spm = random_spm(build_structure(48, 48, stages=10, block=16))
    expected = definition(spm)
    spm.numbers[0]["cross"][4, 7] *= 1.001
    assert relative(spm.to_dense().numpy(), expected) > 100 * TOLERANCE


@settings(max_examples=100, deadline=None)
@given(structures())
def test_the_parameter_count_is_the_numbers_stored(structure: Structure) -> None:
    spm = random_spm(structure)
    assert structure.parameter_count == sum(array.numel() for named in spm.numbers for array in named.values())
    assert structure.stages == sum(len(chain.strides) for chain in structure.chains)
    assert spm.shape == (structure.out_features, structure.in_features)


def test_sizes_of_the_known_forms() -> None:
    assert build_structure(384, 384, stages=10, mixer=Mixer.GENERAL).parameter_count == 20 * 384
    assert build_structure(384, 384, stages=10, mixer=Mixer.CANONICAL).parameter_count == 11 * 384
    assert build_structure(384, 384, stages=40, mixer=Mixer.ROTATION).parameter_count == 21 * 384
    # a canonical stage is one multiply-add a feature, a diagonal another
    assert build_structure(384, 384, stages=10, mixer=Mixer.CANONICAL).multiply_adds == 11 * 384


def test_a_batch_of_operators_equals_them_one_by_one() -> None:
    structure = build_structure(24, 40, stages=7, block=8)
    each = [random_spm(structure, seed) for seed in range(3)]
    together = SPM(
        structure,
        [
            {name: torch.stack([spm.numbers[i][name] for spm in each]) for name in named}
            for i, named in enumerate(each[0].numbers)
        ],
    )
    torch.testing.assert_close(
        together.to_dense(), torch.stack([spm.to_dense() for spm in each]), rtol=1e-12, atol=1e-12
    )
