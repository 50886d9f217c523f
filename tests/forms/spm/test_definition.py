"""Operators against their definition, in every direction a structure can be laid out, and number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from definition import as_arrays, dense_by_definition, dense_of, relative
from draw import STAGES, any_forms, laid_out, random_operator, structures
from hypothesis import given, settings

from spm_compress.forms import Form, Operator
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.spm.pairing import IDENTITY, Affine, Group, Table
from spm_compress.forms.spm.structure import Chain
from spm_compress.forms.sum import Sum

# Float64 rounds at 1e-16; at most 14 stages leave near 1e-14 of the norm.
TOLERANCE = 1e-10

# In, out: square, wide, tall, odd, one row, one column, one number.
SHAPES = [(16, 16), (8, 24), (24, 8), (13, 13), (7, 31), (31, 7), (9, 1), (1, 9), (1, 1), (2, 2)]


def check(spm: Operator, expected: np.ndarray) -> None:
    x = torch.randn(spm.shape[1], 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert relative(spm.to_dense(), expected) < TOLERANCE
    assert relative(spm.matmul(x), expected @ x.numpy()) < TOLERANCE
    # and with the tables handed back, as a module does that keeps them on its device
    runner = spm.form.runner()
    prepared, tables = runner.prepared(spm.arrays), list(runner.tables)
    assert relative(runner.dense(prepared, tables), expected) < TOLERANCE
    assert relative(runner.apply(prepared, x, tables), expected @ x.numpy()) < TOLERANCE
    assert relative(spm.form.apply(spm.arrays, x), expected @ x.numpy()) < TOLERANCE


@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_every_mixer_gauge_schedule_and_shape_is_its_definition(
    into: int, out: int, mixer: Mixer, gauge: Gauge, schedule: Schedule
) -> None:
    for stages in (1, 4, 11):
        spm = random_operator(laid_out(into, out, mixer, gauge, stages=stages, schedule=schedule, block=8), stages)
        check(spm, dense_of(spm))


@settings(max_examples=60, deadline=None)
@given(any_forms())
def test_low_ranks_and_sums_are_their_definition(form: Form) -> None:
    for each in (form, Sum(form.parts[::-1])) if isinstance(form, Sum) else (form,):
        operator = random_operator(each)
        check(operator, dense_of(operator))


def test_a_sum_of_two_chains_hands_each_its_own_tables() -> None:
    one, other = (build_spm(20, 20, stages=3, schedule=Schedule.RANDOM, seed=seed) for seed in (0, 5))
    operator = random_operator(Sum((one, other)))
    check(operator, dense_of(operator))


@settings(max_examples=60, deadline=None)
@given(structures())
def test_transposed_structures_are_their_definition_too(structure: SPM) -> None:
    # Groups of falling strides, groups without stages and moved orders come from here alone.
    if structure.gauge is Gauge.CANONICAL:
        return
    spm = random_operator(structure.transposed())
    check(spm, dense_of(spm))


@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
def test_groups_of_any_start_and_direction_are_their_definition(mixer: Mixer, gauge: Gauge) -> None:
    # Nothing here is what a schedule would lay out: wide strides, empty groups, scales everywhere.
    groups = (
        Group(Affine(3, 2), 2, 4, descending=True),
        Group(Table((4, 2, 0, 1, 3, 10, 9, 8, 7, 6, 5)), 0),
        Group(IDENTITY, 1, 16),
        Group(Affine(10, 7), 3, 1, descending=True),
    )
    chain = Chain(11, groups, (0, 1, 2, 3, 4))
    narrow = Chain(4, (Group(Affine(3, 1), 2, 1, descending=True),), (1,))
    spm = random_operator(SPM(mixer, 5, 3, (chain, narrow), gauge))
    with_orders = dense_of(spm)
    check(spm, with_orders)
    assert np.linalg.matrix_rank(with_orders) == 3


def test_one_pair_by_hand() -> None:
    def dense(mixer: Mixer, gauge: Gauge, **numbers: list[list[float]] | list[float]) -> list[list[float]]:
        structure = SPM(mixer, 2, 2, (Chain(2, (Group(IDENTITY, 1),)),), gauge)
        tensors = {f"0.{name}": torch.tensor(array, dtype=torch.float64) for name, array in numbers.items()}
        matrix: list[list[float]] = Operator(structure, tensors).to_dense().tolist()
        return matrix

    general = dense(Mixer.GENERAL, Gauge.FREE, diagonal=[[2.0, 3.0]], off_diagonal=[[5.0, 7.0]])
    assert general == [[2.0, 5.0], [7.0, 3.0]]
    assert dense(Mixer.GENERAL, Gauge.CANONICAL, off_diagonal=[[5.0, 7.0]]) == [[1.0, 5.0], [7.0, 1.0]]
    half = math.sqrt(0.5)  # (cos u - sin v, sin u + cos v) at 45 degrees
    rotation = dense(Mixer.ROTATION, Gauge.FREE, angles=[math.pi / 4])
    np.testing.assert_allclose(rotation, [[half, -half], [half, half]], rtol=1e-15)


def test_an_order_is_taken_before_its_group_and_never_undone() -> None:
    # Four features, order (2, 3, 0, 1), identity stages: position i shows feature order[i] to the end.
    structure = SPM(Mixer.GENERAL, 4, 4, (Chain(4, (Group(Table((2, 3, 1, 0)), 1),)),), Gauge.CANONICAL)
    spm = Operator(structure, {"0.off_diagonal": torch.tensor([[0.5, 0.0, 0.0, 0.0]])})
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
    structure = laid_out(into, out, Mixer.GENERAL, Gauge.CANONICAL, stages=1)
    arrays = {
        name: torch.full(shape, 0.0 if name.endswith(".off_diagonal") else 1.0)
        for name, shape in structure.shapes.items()
    }
    assert Operator(structure, arrays).to_dense().tolist() == rows


@pytest.mark.parametrize("with_low_rank", [False, True])
@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out"), [(8, 8), (4, 8), (8, 4)])
def test_the_tolerance_notices_a_thousandth_in_any_number(
    into: int, out: int, mixer: Mixer, gauge: Gauge, with_low_rank: bool
) -> None:
    spm = laid_out(into, out, mixer, gauge, stages=7, block=4)
    form: Form = Sum((spm, LowRank(into, out, 2))) if with_low_rank else spm
    operator = random_operator(form)
    found = operator.to_dense()
    assert relative(found, dense_of(operator)) < TOLERANCE
    for name, array in operator.arrays.items():
        for at in np.ndindex(*array.shape):
            numbers = as_arrays(operator.arrays)
            numbers[name][at] *= 1.001
            off = relative(found, dense_by_definition(form, numbers))
            assert off > 1000 * TOLERANCE, f"{name}{list(at)} does not matter"


@pytest.mark.parametrize("gauge", list(Gauge))
def test_the_off_diagonal_number_of_a_position_without_partner_counts_for_nothing(gauge: Gauge) -> None:
    spm = random_operator(laid_out(5, 5, Mixer.GENERAL, gauge, stages=1))
    expected = dense_of(spm)
    spm.arrays["0.off_diagonal"][0, 4] = 1e6
    check(spm, expected)


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_any_number_of_rows_is_taken(rows: int) -> None:
    spm = random_operator(build_spm(6, 10, stages=4, block=4))
    x = torch.randn(6, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert spm.matmul(x).shape == spm.form.apply(spm.arrays, x).shape == (10, rows)
    assert relative(spm.matmul(x), dense_of(spm) @ x.numpy()) < TOLERANCE


@pytest.mark.parametrize("with_low_rank", [False, True])
@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out"), [(7, 7), (5, 9), (9, 5)])
def test_a_stack_of_operators_is_each_of_them(
    into: int, out: int, mixer: Mixer, gauge: Gauge, with_low_rank: bool
) -> None:
    spm = laid_out(into, out, mixer, gauge, stages=6, block=4)
    form: Form = Sum((spm, LowRank(into, out, 2))) if with_low_rank else spm
    each = [random_operator(form, seed) for seed in range(3)]
    stack = {name: torch.stack([operator.arrays[name] for operator in each]) for name in form.shapes}
    x = torch.randn(3, into, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    dense, fused = Operator(form, stack).to_dense(), Operator(form, stack).matmul(x)
    staged = form.apply(stack, x)
    for k, operator in enumerate(each):
        expected = dense_of(operator)
        assert relative(dense[k], expected) < TOLERANCE
        assert relative(fused[k], expected @ x[k].numpy()) < TOLERANCE
        assert relative(staged[k], expected @ x[k].numpy()) < TOLERANCE


def test_another_dtype_keeps_form_and_numbers() -> None:
    spm = random_operator(build_spm(8, 8, stages=3))
    half = spm.to(torch.bfloat16)
    assert half.form == spm.form
    assert half.to_dense().dtype == torch.bfloat16
    assert relative(half.to_dense().float(), dense_of(spm)) < 0.05  # 8 bits, 0.4 % each, over three stages
    assert spm.to_dense().dtype == torch.float64
