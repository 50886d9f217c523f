"""Pairings, groups, orders and schedules, each against a count or a matrix worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from definition import dense_by_definition, group_order
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.forms import Operator
from spm_compress.forms.spm import SPM, Mixer
from spm_compress.forms.spm.pairing import (
    IDENTITY,
    Affine,
    Group,
    Order,
    Schedule,
    Shuffle,
    Table,
    butterfly,
    fixed_frame,
    grouped,
    pair_count,
    partner,
    random,
)
from spm_compress.forms.spm.structure import Chain

widths = st.integers(1, 70) | st.sampled_from([96, 97, 127, 128, 129, 384])
powers = st.integers(0, 8).map(lambda k: 1 << k)
blocks = st.sampled_from([2, 4, 8, 32, 64])
seeds = st.integers(0, 2**32)
schedules = st.sampled_from(list(Schedule))
quick = settings(deadline=None, max_examples=80)


def groups_of(schedule: Schedule, width: int, stages: int, block: int, seed: int) -> tuple[Group, ...]:
    return schedule.groups(width, stages, block=block, seed=seed)


def strides_of(groups: tuple[Group, ...]) -> list[int]:
    return [stride for group in groups for stride in group.strides]


@quick
@given(widths, powers)
def test_pairing_is_an_involution_of_distance_stride(width: int, stride: int) -> None:
    other = partner(width, stride).tolist()
    assert sorted(other) == list(range(width))
    assert [other[j] for j in other] == list(range(width))
    assert all(abs(i - j) in (0, stride) for i, j in enumerate(other))


@quick
@given(widths, powers)
def test_only_positions_without_a_partner_below_the_width_stay_alone(width: int, stride: int) -> None:
    alone = [i for i, j in enumerate(partner(width, stride).tolist()) if i == j]
    assert alone == [i for i in range(width) if i ^ stride >= width]


@quick
@given(widths, powers)
def test_pair_count_equals_counting(width: int, stride: int) -> None:
    assert pair_count(width, stride) == sum(1 for i in range(width) if i < i ^ stride < width)


@quick
@given(widths, st.integers(1, 25), blocks, seeds, schedules)
def test_schedule_has_the_stages_asked_for(width: int, stages: int, block: int, seed: int, schedule: Schedule) -> None:
    groups = groups_of(schedule, width, stages, block, seed)
    assert sum(group.stages for group in groups) == len(strides_of(groups)) == stages
    assert all(2 <= group.block <= block for group in groups)


@quick
@given(widths, st.integers(1, 25), blocks, seeds, schedules)
def test_every_stage_of_a_schedule_pairs_features(
    width: int, stages: int, block: int, seed: int, schedule: Schedule
) -> None:
    # A stage without a pair is a diagonal that costs as much as a stage; only one feature has no other.
    for stride in strides_of(groups_of(schedule, width, stages, block, seed)):
        assert pair_count(width, stride) > 0 or width == 1


@quick
@given(widths, st.integers(1, 25), blocks, seeds, schedules)
def test_orders_are_permutations_and_inverse_undoes_them(
    width: int, stages: int, block: int, seed: int, schedule: Schedule
) -> None:
    for group in groups_of(schedule, width, stages, block, seed):
        there, back = group.order.indices(width), group.order.inverse(width).indices(width)
        assert sorted(there.tolist()) == list(range(width))
        assert there[back].tolist() == back[there].tolist() == list(range(width))


@pytest.mark.parametrize(
    ("order", "width", "expected"),
    [
        (Affine(3, 1), 7, [1, 4, 0, 3, 6, 2, 5]),
        (Affine(5, 0), 1, [0]),
        (Shuffle(2), 6, [0, 3, 1, 4, 2, 5]),
        (Shuffle(3), 6, [0, 2, 4, 1, 3, 5]),
        (Table((2, 0, 1)), 3, [2, 0, 1]),
        (IDENTITY, 4, [0, 1, 2, 3]),
    ],
)
def test_order_says_which_feature_stands_where(order: Order, width: int, expected: list[int]) -> None:
    assert order.indices(width).tolist() == expected


@settings(deadline=None, max_examples=20)
@given(widths, st.integers(1, 25), blocks, seeds)
def test_schedules_follow_from_the_seed_alone(width: int, stages: int, block: int, seed: int) -> None:
    torch.manual_seed(1)
    first = [groups_of(schedule, width, stages, block, seed) for schedule in Schedule]
    torch.manual_seed(2)
    assert first == [groups_of(schedule, width, stages, block, seed) for schedule in Schedule]


def test_seed_changes_grouped_and_random_and_leaves_butterfly() -> None:
    def kinds(schedule: Schedule) -> int:
        return len({groups_of(schedule, 97, 10, 32, seed) for seed in range(8)})

    assert kinds(Schedule.GROUPED) > 1
    assert kinds(Schedule.RANDOM) == 8
    assert kinds(Schedule.BUTTERFLY) == 1


@pytest.mark.parametrize("width", [384, 1536, 257])
def test_grouped_meets_no_old_block_twice_where_that_can_be(width: int) -> None:
    # 32 positions of a new block can come from 32 old blocks only if there are as many.
    first, second = grouped(width, 10, block=32, seed=0)
    features = second.order.indices(width)
    met = [len(set((features[k : k + 32] // first.block).tolist())) for k in range(0, width, 32)]
    full = [min(32, width - k) for k in range(0, width, 32)]
    olds = -(-width // 32)
    # A permutation by equal steps may miss by one at the seam where it wraps.
    assert all(m >= min(f, olds) - 1 for m, f in zip(met, full, strict=True))


@quick
@given(widths, st.integers(1, 25), blocks)
def test_butterfly_strides_double_below_the_width_and_begin_again(width: int, stages: int, block: int) -> None:
    below = [2**k for k in range(10) if 2**k < width] or [1]
    expected = list(itertools.islice(itertools.cycle(below), stages))
    groups = butterfly(width, stages, block=block)
    assert strides_of(groups) == expected
    assert all(group.order == IDENTITY for group in groups)


@quick
@given(widths, st.integers(1, 25), blocks, seeds)
def test_grouped_strides_double_inside_consecutive_blocks(width: int, stages: int, block: int, seed: int) -> None:
    groups = grouped(width, stages, block=block, seed=seed)
    assert groups[0].order == IDENTITY
    for group in groups:
        assert group.strides == tuple(2**k for k in range(group.stages))
    # All but the last are as deep as the block and the width let them be.
    deepest = min(block.bit_length() - 1, max(1, (width - 1).bit_length()))
    assert all(group.stages == deepest for group in groups[:-1])


@quick
@given(widths, st.integers(1, 8), seeds)
def test_random_gives_every_stage_a_table_of_its_own(width: int, stages: int, seed: int) -> None:
    groups = random(width, stages, seed=seed)
    assert all(isinstance(group.order, Table) and group.stages == 1 for group in groups)
    if width >= 20:  # two equal permutations of 20 features: less than 1e-18
        assert len({group.order for group in groups}) == stages


@quick
@given(widths, st.integers(0, 5), powers, st.booleans())
def test_pairs_stay_inside_the_members_of_one_block(width: int, stages: int, low: int, descending: bool) -> None:
    group = Group(IDENTITY, stages, low, descending)
    rows = group.members(width).tolist()
    row_of = {position: k for k, row in enumerate(rows) for position in row}
    assert len(row_of) == sum(len(row) for row in rows), "no position stands twice"
    assert set(range(width)) <= set(row_of)
    assert all(len(row) == 2**stages for row in rows)
    for stride in group.strides:
        assert all(row_of[i] == row_of[j] for i, j in enumerate(partner(width, stride).tolist()))


@pytest.mark.parametrize("descending", [False, True])
def test_descending_group_has_the_same_strides_in_reverse(descending: bool) -> None:
    strides = Group(IDENTITY, 3, 4, descending).strides
    assert strides == ((16, 8, 4) if descending else (4, 8, 16))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 24), st.integers(1, 9), st.sampled_from([2, 4, 8]), st.integers(0, 99), schedules)
def test_fixed_frame_with_its_output_order_is_the_same_map(
    width: int, stages: int, block: int, seed: int, schedule: Schedule
) -> None:
    groups = groups_of(schedule, width, stages, block, seed)
    structure = SPM(Mixer.GENERAL, width, width, (Chain(width, groups),))
    draw = np.random.default_rng(seed)
    diagonal, off_diagonal = draw.normal(size=(2, stages, width))
    partners, exit_order = (table.numpy() for table in fixed_frame(groups, width))

    # The paper's form: features never move, only each stage's numbers are looked up where the feature stands.
    at = list(range(width))  # the feature at each position
    fixed = np.eye(width)
    stage = 0
    for group in groups:
        at = [at[i] for i in group_order(group, width)]
        for _ in group.strides:
            mixing = np.zeros((width, width))
            for position, feature in enumerate(at):
                mixing[feature, feature] += diagonal[stage, position]
                if partners[stage, feature] != feature:
                    mixing[feature, partners[stage, feature]] += off_diagonal[stage, position]
            fixed = mixing @ fixed
            stage += 1

    numbers = {"0.diagonal": diagonal, "0.off_diagonal": off_diagonal}
    spm = Operator(structure, {name: torch.from_numpy(array) for name, array in numbers.items()})
    expected = dense_by_definition(structure, numbers)
    bound = 1e-12 * np.abs(expected).max()  # float64, at most 9 stages: rounding of 1e-15
    np.testing.assert_allclose(fixed[exit_order], expected, rtol=0, atol=bound)
    np.testing.assert_allclose(fixed[exit_order], spm.to_dense().numpy(), rtol=0, atol=bound)


@quick
@given(widths, st.integers(1, 12), blocks, seeds, schedules)
def test_fixed_frame_pairings_are_involutions(
    width: int, stages: int, block: int, seed: int, schedule: Schedule
) -> None:
    partners, exit_order = fixed_frame(groups_of(schedule, width, stages, block, seed), width)
    assert partners.shape == (stages, width)
    for pairing in partners:
        assert torch.equal(pairing[pairing], torch.arange(width))
    assert sorted(exit_order.tolist()) == list(range(width))


def test_a_seed_gives_the_same_orders_for_ever() -> None:
    # Noted on 2026-11-23: the same model, settings and seed have to give the same pairings in every version.
    assert [group.order for group in grouped(384, 20, block=32, seed=0)] == [IDENTITY, *[Shuffle(12)] * 3]
    assert [group.order for group in grouped(385, 20, block=32, seed=0)] == [
        IDENTITY,
        Affine(12, 7),
        Affine(12, 0),
        Affine(12, 23),
    ]
    assert [group.order for group in random(8, 2, seed=5)] == [
        Table((3, 5, 7, 2, 6, 0, 4, 1)),
        Table((1, 5, 4, 3, 6, 7, 0, 2)),
    ]
