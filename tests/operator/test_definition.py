"""The operator against its definition, in every direction a structure can be laid out, and number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from definition import as_arrays, dense_by_definition, dense_of, relative
from draw import random_spm, structures
from hypothesis import given, settings

from spm_compress.operator import SPM, Mixer, Schedule, Structure, build_structure
from spm_compress.operator.pairing import IDENTITY, Affine, Group, Table
from spm_compress.operator.spm import apply_stages
from spm_compress.operator.structure import Chain

# Float64 rounds at 1e-16; at most 14 stages leave near 1e-14 of the norm.
TOLERANCE = 1e-10

# In, out: square, wide, tall, odd, one row, one column, one number.
SHAPES = [(16, 16), (8, 24), (24, 8), (13, 13), (7, 31), (31, 7), (9, 1), (1, 9), (1, 1), (2, 2)]


def check(spm: SPM, expected: np.ndarray) -> None:
    x = torch.randn(spm.shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert relative(spm.to_dense(), expected) < TOLERANCE
    assert relative(spm.matmul(x), expected @ x.numpy()) < TOLERANCE
    assert relative(apply_stages(spm.structure, spm.numbers, x), expected @ x.numpy()) < TOLERANCE


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("mixer", list(Mixer))
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_every_mixer_schedule_and_shape_is_its_definition(
    into: int, out: int, mixer: Mixer, schedule: Schedule
) -> None:
    for stages in (1, 4, 11):
        spm = random_spm(build_structure(into, out, stages=stages, mixer=mixer, schedule=schedule, block=8), stages)
        check(spm, dense_of(spm))


@settings(max_examples=60, deadline=None)
@given(structures())
def test_transposed_structures_are_their_definition_too(structure: Structure) -> None:
    # Groups of falling strides, groups without stages and moved orders come from here alone.
    if structure.mixer is Mixer.CANONICAL:
        return
    spm = random_spm(structure.transposed())
    check(spm, dense_of(spm))


@pytest.mark.parametrize("mixer", list(Mixer))
def test_groups_of_any_start_and_direction_are_their_definition(mixer: Mixer) -> None:
    # Nothing here is what a schedule would lay out: wide strides, empty groups, diagonals everywhere.
    groups = (
        Group(Affine(3, 2), 2, 4, descending=True),
        Group(Table((4, 2, 0, 1, 3, 10, 9, 8, 7, 6, 5)), 0),
        Group(IDENTITY, 1, 16),
        Group(Affine(10, 7), 3, 1, descending=True),
    )
    chain = Chain(11, groups, (0, 1, 2, 3, 4))
    narrow = Chain(4, (Group(Affine(3, 1), 2, 1, descending=True),), (1,))
    spm = random_spm(Structure(mixer, 5, 3, (chain, narrow)))
    with_orders = dense_of(spm)
    check(spm, with_orders)
    assert np.linalg.matrix_rank(with_orders) == 3


def test_one_pair_by_hand() -> None:
    def dense(mixer: Mixer, **numbers: list[list[float]] | list[float]) -> list[list[float]]:
        structure = Structure(mixer, 2, 2, (Chain(2, (Group(IDENTITY, 1),)),))
        tensors = {name: torch.tensor(array, dtype=torch.float64) for name, array in numbers.items()}
        matrix: list[list[float]] = SPM(structure, [tensors]).to_dense().tolist()
        return matrix

    assert dense(Mixer.GENERAL, direct=[[2.0, 3.0]], cross=[[5.0, 7.0]]) == [[2.0, 5.0], [7.0, 3.0]]
    assert dense(Mixer.CANONICAL, cross=[[5.0, 7.0]]) == [[1.0, 5.0], [7.0, 1.0]]
    half = math.sqrt(0.5)  # (cos u - sin v, sin u + cos v) at 45 degrees
    np.testing.assert_allclose(dense(Mixer.ROTATION, angles=[math.pi / 4]), [[half, -half], [half, half]], rtol=1e-15)


def test_an_order_is_taken_before_its_group_and_never_undone() -> None:
    # Four features, order (2, 3, 0, 1), identity stages: position i shows feature order[i] to the end.
    structure = Structure(Mixer.CANONICAL, 4, 4, (Chain(4, (Group(Table((2, 3, 1, 0)), 1),)),))
    spm = SPM(structure, [{"cross": torch.tensor([[0.5, 0.0, 0.0, 0.0]])}])
    expected = [[0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]
    assert spm.to_dense().tolist() == expected


@pytest.mark.parametrize(
    ("into", "out", "rows"),
    [
        (2, 5, [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]),  # row j takes feature j mod 2
        (5, 2, [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0]]),  # row j sums the features equal to j modulo 2
    ],
)
def test_width_changes_repeat_or_fold(into: int, out: int, rows: list[list[int]]) -> None:
    structure = build_structure(into, out, stages=1, mixer=Mixer.CANONICAL)
    numbers = [
        {name: torch.full(shape, 0.0 if name == "cross" else 1.0) for name, shape in named.items()}
        for named in structure.shapes()
    ]
    assert SPM(structure, numbers).to_dense().tolist() == rows


@pytest.mark.parametrize("mixer", list(Mixer))
@pytest.mark.parametrize(("into", "out"), [(8, 8), (4, 8), (8, 4)])
def test_the_tolerance_notices_a_thousandth_in_any_number(into: int, out: int, mixer: Mixer) -> None:
    structure = build_structure(into, out, stages=7, mixer=mixer, block=4)
    spm = random_spm(structure)
    found = spm.to_dense()
    assert relative(found, dense_of(spm)) < TOLERANCE
    for chain, named in enumerate(spm.numbers):
        for name, array in named.items():
            for at in np.ndindex(*array.shape):
                numbers = as_arrays(spm.numbers)
                numbers[chain][name] = numbers[chain][name].copy()
                numbers[chain][name][at] *= 1.001
                off = relative(found, dense_by_definition(structure, numbers))
                assert off > 1000 * TOLERANCE, f"chain {chain}, {name}{list(at)} does not matter"


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.CANONICAL])
def test_the_cross_number_of_a_position_without_partner_counts_for_nothing(mixer: Mixer) -> None:
    spm = random_spm(build_structure(5, 5, stages=1, mixer=mixer))
    expected = dense_of(spm)
    spm.numbers[0]["cross"][0, 4] = 1e6
    check(spm, expected)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_number_of_rows_is_taken(rows: int) -> None:
    spm = random_spm(build_structure(6, 10, stages=4, block=4))
    x = torch.randn(6, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert spm.matmul(x).shape == apply_stages(spm.structure, spm.numbers, x).shape == (10, rows)
    assert relative(spm.matmul(x), dense_of(spm) @ x.numpy()) < TOLERANCE


@pytest.mark.parametrize("mixer", list(Mixer))
@pytest.mark.parametrize(("into", "out"), [(7, 7), (5, 9), (9, 5)])
def test_a_stack_of_operators_is_each_of_them(into: int, out: int, mixer: Mixer) -> None:
    structure = build_structure(into, out, stages=6, mixer=mixer, block=4)
    each = [random_spm(structure, seed) for seed in range(3)]
    names = [list(named) for named in each[0].numbers]
    stack = [{name: torch.stack([s.numbers[i][name] for s in each]) for name in own} for i, own in enumerate(names)]
    x = torch.randn(3, into, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    dense, fused = SPM(structure, stack).to_dense(), SPM(structure, stack).matmul(x)
    staged = apply_stages(structure, stack, x)
    for k, spm in enumerate(each):
        expected = dense_of(spm)
        assert relative(dense[k], expected) < TOLERANCE
        assert relative(fused[k], expected @ x[k].numpy()) < TOLERANCE
        assert relative(staged[k], expected @ x[k].numpy()) < TOLERANCE


def test_another_dtype_keeps_structure_and_numbers() -> None:
    spm = random_spm(build_structure(8, 8, stages=3))
    half = spm.to(torch.bfloat16)
    assert half.structure == spm.structure
    assert half.to_dense().dtype == torch.bfloat16
    assert relative(half.to_dense().float(), dense_of(spm)) < 0.05  # 8 bits, 0.4 % each, over three stages
    assert spm.to_dense().dtype == torch.float64
