"""The buffers of a descent against autograd through the stages: same values, same gradients, at every call."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from spm_compress.fitting.objective import Objective, energies
from spm_compress.forms.spm import SPM, Mixer, Schedule, build_spm
from spm_compress.forms.spm.target import Target

# Two groups of equal and of different depth, four, a width that leaves a block incomplete, a wide map, rotations.
CASES = [
    (48, 48, 6, Mixer.GENERAL),
    (64, 64, 5, Mixer.GENERAL),
    (256, 256, 6, Mixer.GENERAL),
    (48, 48, 12, Mixer.GENERAL),
    (50, 50, 6, Mixer.GENERAL),
    (32, 96, 6, Mixer.GENERAL),
    (32, 96, 14, Mixer.ROTATION),
    (48, 48, 6, Mixer.ROTATION),
]


def drawn(structure: SPM, batch: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, *shape, generator=generator, dtype=torch.float64).requires_grad_()
        for name, shape in structure.shapes.items()
    }


@pytest.mark.parametrize("schedule", [Schedule.GROUPED, Schedule.BUTTERFLY])
@pytest.mark.parametrize(("into", "out", "stages", "mixer"), CASES)
def test_values_and_gradients_are_those_of_autograd(
    into: int, out: int, stages: int, mixer: Mixer, schedule: Schedule
) -> None:
    structure = build_spm(into, out, stages=stages, block=8, mixer=mixer, schedule=schedule)
    weights = torch.randn(2, out, into, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = Target(Objective(weights), structure)
    trained = target.trained_entries()
    for seed in range(3):  # buffers are used again
        arrays = drawn(structure, 2, seed)
        plain = target.entries(arrays)
        slope = torch.randn(plain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        expected = torch.autograd.grad(plain, list(arrays.values()), slope)
        entries = trained(arrays)
        torch.testing.assert_close(entries, plain, rtol=1e-12, atol=1e-12)
        for found, known in zip(torch.autograd.grad(entries, list(arrays.values()), slope), expected, strict=True):
            torch.testing.assert_close(found, known, rtol=1e-10, atol=1e-10)


def test_a_descent_asks_for_no_second_derivative_and_is_told_that_there_is_none() -> None:
    structure = build_spm(16, 16, stages=4, block=4)
    target = Target(Objective(torch.eye(16, dtype=torch.float64)[None]), structure)
    arrays = drawn(structure, 1, 0)
    entries = target.trained_entries()(arrays)
    (gradient,) = torch.autograd.grad(entries.square().sum(), arrays["0.diagonal"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("into", "out"), [(48, 48), (256, 256), (32, 96)])
def test_the_error_counts_what_is_out_of_reach(into: int, out: int) -> None:
    structure = build_spm(into, out, stages=6, block=8)
    weights = torch.randn(3, out, into, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole, reached = (Target(Objective(weights), structure, whole=whole) for whole in (True, False))
    assert reached.objective.weights.numel() <= weights.numel()
    torch.testing.assert_close(reached.objective.norms(), whole.objective.norms())
    arrays = drawn(structure, 3, 2)
    errors = [energies(t.objective, t.entries(arrays).detach() - t.objective.weights)[0] for t in (whole, reached)]
    torch.testing.assert_close(*errors)
    torch.testing.assert_close(*(t.objective.best_scale(t.entries(arrays).detach()) for t in (whole, reached)))
