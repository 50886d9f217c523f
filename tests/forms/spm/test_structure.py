"""What a form counts, refuses and lays out, before any number."""

from __future__ import annotations

import pytest
import torch
from draw import any_forms, laid_out, random_operator, structures
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.codecs import FLOAT16, FLOAT32
from spm_compress.errors import UsageError
from spm_compress.forms import Form
from spm_compress.forms.form import numbers_of, stored_bytes
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.sum import Sum


@pytest.mark.parametrize(
    ("into", "out", "stages"), [(0, 4, 1), (4, 0, 1), (4, 4, 0), (-1, 4, 1), (4, -3, 1), (4, 4, -2)]
)
@pytest.mark.parametrize("mixer", list(Mixer))
def test_sizes_below_one_are_refused(into: int, out: int, stages: int, mixer: Mixer) -> None:
    with pytest.raises(UsageError, match=f"{out}x{into} in {stages} stages"):
        build_spm(into, out, stages=stages, mixer=mixer)


@pytest.mark.parametrize("block", [-2, 0, 1, 3, 6, 33, 48])
@pytest.mark.parametrize("mixer", list(Mixer))
@pytest.mark.parametrize("schedule", list(Schedule))
def test_blocks_that_are_no_power_of_two_are_refused(block: int, mixer: Mixer, schedule: Schedule) -> None:
    with pytest.raises(UsageError, match=f"`block` {block}:"):
        build_spm(8, 8, stages=2, block=block, mixer=mixer, schedule=schedule)


@settings(max_examples=100, deadline=None)
@given(structures())
def test_widths_lead_from_the_input_to_the_output(structure: SPM) -> None:
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
    structure = build_spm(into, out, stages=stages, mixer=mixer, schedule=schedule, block=block)
    assert structure.stages == sum(chain.stages for chain in structure.chains) == stages


# n numbers a stage in the canonical gauge, 2n in the free one, n/2 a rotation; scales where they are needed.
@pytest.mark.parametrize(
    ("into", "out", "mixer", "gauge", "numbers"),
    [
        (64, 64, Mixer.GENERAL, Gauge.FREE, 2 * 64 * 12),
        (64, 64, Mixer.GENERAL, Gauge.CANONICAL, 64 * 12 + 64),
        (64, 64, Mixer.ROTATION, Gauge.FREE, 32 * 12 + 2 * 64),
        # block 8: half the stages, in whole groups of 3, stand at each width
        (32, 64, Mixer.GENERAL, Gauge.FREE, 2 * (6 * 64 + 6 * 32)),
        (64, 32, Mixer.GENERAL, Gauge.FREE, 2 * (6 * 64 + 6 * 32)),
        (32, 64, Mixer.GENERAL, Gauge.CANONICAL, 6 * 64 + 6 * 32 + 64),
        # a fold lets no scale pass: one scaling before it and one at the end
        (64, 32, Mixer.GENERAL, Gauge.CANONICAL, 6 * 64 + 6 * 32 + 64 + 32),
        (32, 64, Mixer.ROTATION, Gauge.FREE, 6 * 32 + 6 * 16 + 64 + 32),
        (64, 32, Mixer.ROTATION, Gauge.FREE, 6 * 32 + 6 * 16 + 64 + 32),
        (1, 1, Mixer.ROTATION, Gauge.FREE, 6),
        (1, 1, Mixer.GENERAL, Gauge.FREE, 2 * 12),
    ],
)
def test_known_sizes(into: int, out: int, mixer: Mixer, gauge: Gauge, numbers: int) -> None:
    structure = laid_out(into, out, mixer, gauge, stages=12, block=8)
    assert numbers_of(structure) == numbers
    spm = random_operator(structure)
    assert spm.parameter_count == sum(array.numel() for array in spm.arrays.values()) == numbers


@settings(max_examples=100, deadline=None)
@given(any_forms())
def test_a_low_rank_has_its_factors_and_a_sum_what_its_parts_have(form: Form) -> None:
    def counted(form: Form) -> int:
        if isinstance(form, Sum):
            return sum(counted(part) for part in form.parts)
        if isinstance(form, LowRank):
            return form.rank * (form.in_features + form.out_features)
        return sum(array.numel() for array in random_operator(form).arrays.values())

    assert numbers_of(form) == random_operator(form).parameter_count == counted(form)


@settings(max_examples=100, deadline=None)
@given(any_forms())
def test_multiply_adds_are_the_entries_that_pairs_and_scales_and_factors_have(form: Form) -> None:
    entries = 0
    for part in form.parts if isinstance(form, Sum) else (form,):
        if isinstance(part, LowRank):
            entries += part.rank * (part.in_features + part.out_features)
            continue
        assert isinstance(part, SPM)
        for chain in part.chains:
            for group in chain.groups:
                for stride in group.strides:
                    paired = [i for i in range(chain.width) if i ^ stride < chain.width]
                    entries += len(paired) * (1 if part.gauge is Gauge.CANONICAL else 2)
            entries += len(chain.scales) * chain.width
    assert form.multiply_adds == entries


def test_a_thin_chain_costs_far_less_than_the_dense_product() -> None:
    # 10 stages of width 384, one multiply-add a number, against 384 a row
    structure = build_spm(384, 384, stages=10).stored(FLOAT32)
    assert structure.multiply_adds == numbers_of(structure) == 11 * 384
    assert structure.multiply_adds < 384 * 384 / 30


@pytest.mark.parametrize("schedule", list(Schedule))
def test_only_orders_without_a_formula_cost_index_bytes(schedule: Schedule) -> None:
    structure = build_spm(20, 20, stages=6, schedule=schedule, block=4)
    random = schedule is Schedule.RANDOM
    assert sum(table.nbytes for table in structure.tables.values()) == (6 * 20 * 4 if random else 0)
    assert list(structure.tables) == ([f"0.order.{g}" for g in range(6)] if random else [])
    for table in structure.tables.values():
        assert table.dtype == torch.int32
        assert sorted(table.tolist()) == list(range(20))


@pytest.mark.parametrize("schedule", list(Schedule))
def test_stored_bytes_are_those_of_numbers_scales_and_tables(schedule: Schedule) -> None:
    # block 4: three groups of two stages, or six of one where every stage has its order
    structure = build_spm(20, 20, stages=6, schedule=schedule, block=4)
    groups, tables = len(structure.chains[0].groups), 6 * 20 * 4 if schedule is Schedule.RANDOM else 0
    assert stored_bytes(structure) == 4 * (6 * 20 + 20) + tables
    # in float16 a scaling stands after every group, and stays float32
    assert stored_bytes(structure, FLOAT16) == 2 * 6 * 20 + 4 * groups * 20 + tables
    assert stored_bytes(Sum((structure, LowRank(20, 20, 3))), FLOAT16) == (
        stored_bytes(structure, FLOAT16) + 2 * 3 * (20 + 20)
    )


@settings(max_examples=100, deadline=None)
@given(structures())
def test_transposing_a_structure_swaps_its_sizes_and_keeps_its_numbers(structure: SPM) -> None:
    if structure.gauge is Gauge.CANONICAL:
        with pytest.raises(ValueError, match="use the free one"):
            structure.transposed()
        return
    turned = structure.transposed()
    assert turned.widths == structure.widths[::-1]
    assert (turned.stages, numbers_of(turned)) == (structure.stages, numbers_of(structure))
    strides = [chain.strides for chain in structure.chains]
    assert [chain.strides[::-1] for chain in reversed(turned.chains)] == strides


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
def test_a_narrowing_structure_is_the_transposed_widening_one(mixer: Mixer) -> None:
    wide = build_spm(12, 30, stages=9, mixer=mixer, block=4, seed=3)
    assert build_spm(30, 12, stages=9, mixer=mixer, block=4, seed=3) == wide.transposed()
