"""What a structure counts, refuses and lays out, before any number."""

from __future__ import annotations

import pytest
from draw import random_spm, structures
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.errors import UsageError
from spm_compress.operator import Mixer, Schedule, Structure, build_structure


@pytest.mark.parametrize(
    ("into", "out", "stages"), [(0, 4, 1), (4, 0, 1), (4, 4, 0), (-1, 4, 1), (4, -3, 1), (4, 4, -2)]
)
@pytest.mark.parametrize("mixer", list(Mixer))
def test_sizes_below_one_are_refused(into: int, out: int, stages: int, mixer: Mixer) -> None:
    with pytest.raises(UsageError, match=f"{out}x{into} in {stages} stages"):
        build_structure(into, out, stages=stages, mixer=mixer)


@pytest.mark.parametrize("block", [-2, 0, 1, 3, 6, 33, 48])
@pytest.mark.parametrize("mixer", list(Mixer))
@pytest.mark.parametrize("schedule", list(Schedule))
def test_blocks_that_are_no_power_of_two_are_refused(block: int, mixer: Mixer, schedule: Schedule) -> None:
    with pytest.raises(UsageError, match=f"`block` {block}:"):
        build_structure(8, 8, stages=2, block=block, mixer=mixer, schedule=schedule)


@settings(max_examples=100, deadline=None)
@given(structures())
def test_widths_lead_from_the_input_to_the_output(structure: Structure) -> None:
    assert structure.widths[0] == structure.in_features
    assert structure.widths[-1] == structure.out_features
    assert list(structure.widths[1:-1]) == [chain.width for chain in structure.chains]
    # no chain is wider than the map, nor narrower
    assert min(structure.widths) == min(structure.in_features, structure.out_features)
    assert max(structure.widths) == max(structure.in_features, structure.out_features)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(1, 24),
    st.sampled_from([2, 8, 32]),
    st.sampled_from(list(Mixer)),
    st.sampled_from(list(Schedule)),
)
def test_the_stages_asked_for_are_the_stages_there_are(
    into: int, out: int, stages: int, block: int, mixer: Mixer, schedule: Schedule
) -> None:
    structure = build_structure(into, out, stages=stages, mixer=mixer, schedule=schedule, block=block)
    assert structure.stages == sum(chain.stages for chain in structure.chains) == stages


# n numbers a canonical stage, 2n a general one, n/2 a rotation; one diagonal where the form needs one.
@pytest.mark.parametrize(
    ("into", "out", "mixer", "numbers"),
    [
        (64, 64, Mixer.GENERAL, 2 * 64 * 12),
        (64, 64, Mixer.CANONICAL, 64 * 12 + 64),
        (64, 64, Mixer.ROTATION, 32 * 12 + 2 * 64),
        # block 8: half the stages, in whole groups of 3, stand at each width
        (32, 64, Mixer.GENERAL, 2 * (6 * 64 + 6 * 32)),
        (64, 32, Mixer.GENERAL, 2 * (6 * 64 + 6 * 32)),
        (32, 64, Mixer.CANONICAL, 6 * 64 + 6 * 32 + 64),
        # a fold lets no scale pass: one diagonal before it and one at the end
        (64, 32, Mixer.CANONICAL, 6 * 64 + 6 * 32 + 64 + 32),
        (32, 64, Mixer.ROTATION, 6 * 32 + 6 * 16 + 64 + 32),
        (64, 32, Mixer.ROTATION, 6 * 32 + 6 * 16 + 64 + 32),
        (1, 1, Mixer.ROTATION, 6),
        (1, 1, Mixer.GENERAL, 2 * 12),
    ],
)
def test_known_sizes(into: int, out: int, mixer: Mixer, numbers: int) -> None:
    structure = build_structure(into, out, stages=12, mixer=mixer, block=8)
    assert structure.parameter_count == numbers
    spm = random_spm(structure)
    assert spm.parameter_count == sum(array.numel() for named in spm.numbers for array in named.values()) == numbers


@settings(max_examples=100, deadline=None)
@given(structures())
def test_multiply_adds_are_the_entries_that_pairs_and_diagonals_have(structure: Structure) -> None:
    entries = 0
    for chain in structure.chains:
        for group in chain.groups:
            for stride in group.strides:
                paired = [i for i in range(chain.width) if i ^ stride < chain.width]
                entries += len(paired) * (1 if structure.mixer is Mixer.CANONICAL else 2)
        entries += len(chain.diagonals) * chain.width
    entries += structure.rank * (structure.in_features + structure.out_features)
    assert structure.multiply_adds == entries


def test_a_thin_chain_costs_far_less_than_the_dense_product() -> None:
    # 10 stages of width 384, one multiply-add a number, against 384 a row
    structure = build_structure(384, 384, stages=10, mixer=Mixer.CANONICAL)
    assert structure.multiply_adds == structure.parameter_count == 11 * 384
    assert structure.multiply_adds < 384 * 384 / 30


@pytest.mark.parametrize("schedule", list(Schedule))
def test_only_orders_without_a_formula_cost_index_bytes(schedule: Schedule) -> None:
    structure = build_structure(20, 20, stages=6, schedule=schedule, block=4)
    random = schedule is Schedule.RANDOM
    assert structure.index_bytes == (6 * 20 * 4 if random else 0)
    assert structure.tables == (tuple((0, g) for g in range(6)) if random else ())


@settings(max_examples=100, deadline=None)
@given(structures())
def test_transposing_a_structure_swaps_its_sizes_and_keeps_its_numbers(structure: Structure) -> None:
    if structure.mixer is Mixer.CANONICAL:
        with pytest.raises(ValueError, match="general form"):
            structure.transposed()
        return
    turned = structure.transposed()
    assert turned.widths == structure.widths[::-1]
    assert (turned.stages, turned.parameter_count) == (structure.stages, structure.parameter_count)
    strides = [chain.strides for chain in structure.chains]
    assert [chain.strides[::-1] for chain in reversed(turned.chains)] == strides


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
def test_a_narrowing_structure_is_the_transposed_widening_one(mixer: Mixer) -> None:
    wide = build_structure(12, 30, stages=9, mixer=mixer, block=4, seed=3)
    assert build_structure(30, 12, stages=9, mixer=mixer, block=4, seed=3) == wide.transposed()
