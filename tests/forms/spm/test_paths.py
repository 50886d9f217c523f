"""Two groups multiplied out path by path: the same matrix, and zero where no path leads."""

from __future__ import annotations

import pytest
import torch
from definition import dense_of, relative
from draw import STAGES, laid_out, random_operator

from spm_compress.forms.spm import Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.spm.plan import FusedPlan

# In, out, stages, block. As many paths to a tile as it has rows; two or three; one to some tiles; widened; groups of
# different blocks; more than two groups.
CASES = [(32, 32, 6, 8), (48, 48, 6, 8), (256, 256, 6, 8), (32, 96, 6, 8), (64, 64, 4, 8), (64, 64, 9, 8)]


@pytest.mark.parametrize("schedule", [Schedule.GROUPED, Schedule.BUTTERFLY])
@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out", "stages", "block"), CASES)
def test_the_matrix_is_its_definition(
    into: int, out: int, stages: int, block: int, mixer: Mixer, gauge: Gauge, schedule: Schedule
) -> None:
    structure = laid_out(into, out, mixer, gauge, stages=stages, block=block, schedule=schedule)
    plan = FusedPlan(structure)
    # The last block of a butterfly is not full where the width is no power of two.
    assert (plan.paths is not None) == (schedule is Schedule.GROUPED or out in (32, 64, 256))
    spm = random_operator(structure)
    # float64 rounds at 1e-16; nine stages leave near 1e-15.
    assert relative(plan.dense(plan.prepared(spm.arrays)), dense_of(spm)) < 1e-12


@pytest.mark.parametrize(("into", "out", "stages", "block"), CASES[:5])
def test_what_is_out_of_reach_is_zero_and_the_rest_is_the_tiles(into: int, out: int, stages: int, block: int) -> None:
    structure = build_spm(into, out, stages=stages, block=block)
    plan = FusedPlan(structure)
    assert plan.reach is not None
    spm = random_operator(structure)
    expected = torch.from_numpy(dense_of(spm))
    tiles = plan.reached(expected)
    assert relative(plan.reach.product(*plan.prepared(spm.arrays)[0]), tiles) < 1e-12
    assert float(tiles.norm()) == pytest.approx(float(expected.norm()), rel=1e-12)


def test_reach_is_a_part_of_a_wide_matrix_and_all_of_a_narrow_one() -> None:
    wide, narrow = (FusedPlan(build_spm(n, n, stages=6, block=8)).reach for n in (256, 48))
    assert wide is not None and narrow is not None
    assert len(wide.tiles) * 64 == 256 * 64  # each input meets 8 * 8 outputs
    assert len(narrow.tiles) * 64 == 48 * 48


@pytest.mark.parametrize(("into", "out", "stages"), [(64, 64, 9), (64, 64, 3), (96, 32, 6), (50, 50, 6)])
def test_reach_is_claimed_for_two_whole_groups_alone(into: int, out: int, stages: int) -> None:
    assert FusedPlan(build_spm(into, out, stages=stages, block=8)).reach is None


def test_the_matrix_can_be_differentiated_twice() -> None:
    structure = build_spm(16, 16, stages=4, block=4)
    plan = FusedPlan(structure)
    arrays = random_operator(structure).arrays

    def dense(diagonal: torch.Tensor, off_diagonal: torch.Tensor) -> torch.Tensor:
        return plan.dense(plan.prepared({"0.diagonal": diagonal, "0.off_diagonal": off_diagonal}))

    inputs = tuple(arrays[name].clone().requires_grad_() for name in ("0.diagonal", "0.off_diagonal"))
    assert torch.autograd.gradcheck(dense, inputs)
    assert torch.autograd.gradgradcheck(dense, inputs)
