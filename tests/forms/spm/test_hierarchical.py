"""The closed form: exact on chains, close to chains near them, refused where it does not hold."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from definition import dense_by_definition, dense_of, drawn_numbers, group_order, group_strides, relative
from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.forms import Operator
from spm_compress.forms.spm import SPM, Mixer, Schedule, build_spm
from spm_compress.forms.spm.hierarchical import factorize, is_identifiable

# The splits are taken in float64; only the numbers they begin from are rounded, to 1e-16.
EXACT = 1e-10


def factorized(weights: np.ndarray, structure: SPM) -> list[np.ndarray]:
    """The dense matrices, by definition, of what the closed form gives for weights (k, n, n)."""
    arrays = factorize(torch.from_numpy(weights), structure)
    return [
        dense_of(Operator(structure, {name: array[k] for name, array in arrays.items()})) for k in range(len(weights))
    ]


def chains(n: int) -> list[SPM]:
    """Structures of log2(n) stages whose closed form is exact."""
    made = [
        build_spm(n, n, stages=max(1, (n - 1).bit_length()), mixer=mixer, schedule=schedule, block=32)
        for mixer in (Mixer.GENERAL, Mixer.ROTATION)
        for schedule in (Schedule.GROUPED, Schedule.BUTTERFLY)
    ]
    assert all(is_identifiable(structure) for structure in made)
    return made


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 13, 16, 31, 64])
def test_a_chain_is_factorized_exactly(n: int) -> None:
    for structure in chains(n):
        weights = np.stack([dense_by_definition(structure, drawn_numbers(structure, seed)) for seed in range(2)])
        for found, weight in zip(factorized(weights, structure), weights, strict=True):
            assert relative(found, weight) < EXACT


def test_the_tolerance_notices_a_thousandth_in_one_number() -> None:
    for structure in chains(16):
        numbers = drawn_numbers(structure)
        weight = dense_by_definition(structure, numbers)
        array = numbers["0.angles" if structure.mixer is Mixer.ROTATION else "0.off_diagonal"]
        array[(0,) * array.ndim] *= 1.001
        assert relative(dense_by_definition(structure, numbers), weight) > 1000 * EXACT


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
def test_zeros_signs_and_swaps_are_factorized_exactly(mixer: Mixer) -> None:
    structure = build_spm(8, 8, stages=3, mixer=mixer)
    if mixer is Mixer.ROTATION:  # quarter turns exchange, half turns change the sign
        angles = np.array([0, 1, 2, 3, 1, 0, 3, 2, 2, 1, 0, 1]) * math.pi / 2
        numbers = {"0.angles": angles, "0.scales": np.array([[1.0, -2, 3, 0, 5, -6, 7, 8]])}
    else:
        numbers = drawn_numbers(structure)
        numbers["0.diagonal"][0] = 0
        numbers["0.off_diagonal"][1] = 0
        numbers["0.diagonal"][2, :2] = numbers["0.off_diagonal"][2, :2] = 0
    weight = dense_by_definition(structure, numbers)
    (found,) = factorized(weight[None], structure)
    assert relative(found, weight) < EXACT


def test_zero_is_factorized_to_zero() -> None:
    for structure in chains(8):
        (found,) = factorized(np.zeros((1, 8, 8)), structure)
        assert not found.any()


def test_fewer_stages_than_the_width_has_are_factorized_exactly() -> None:
    for stages in (1, 2, 3):
        structure = build_spm(32, 32, stages=stages)
        assert is_identifiable(structure)
        weight = dense_by_definition(structure, drawn_numbers(structure))
        assert relative(factorized(weight[None], structure)[0], weight) < EXACT


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1e-1, 1e-2, 1e-4]))
def test_a_matrix_near_a_chain_is_met_nearly(seed: int, noise: float) -> None:
    # Splits by best rank one stay within sqrt(stages - 1) of the best chain (Le, Zheng, Riccietti, Gribonval
    # 2022, for an order that this one is close to). Over 4,500 draws: 0.85 of the noise at the median, 1.27 at most.
    structure = build_spm(16, 16, stages=4)
    weight = dense_by_definition(structure, drawn_numbers(structure, seed))
    disturbance = np.random.default_rng(seed + 1).normal(size=weight.shape)
    near = weight + noise * disturbance * np.linalg.norm(weight) / np.linalg.norm(disturbance)
    assert relative(factorized(near[None], structure)[0], near) < math.sqrt(3) * noise


@pytest.mark.parametrize("n", [4, 5, 7, 13, 16])
def test_two_stages_are_the_best_there_are(n: int) -> None:
    # One cut: outputs {f, f ^ 2} meet inputs {f, f ^ 1} through feature f alone, and no block overlaps another.
    # What is lost is all but the largest singular value of each block (Eckart and Young), and what no block holds.
    structure = build_spm(n, n, stages=2, schedule=Schedule.BUTTERFLY)
    weight = np.random.default_rng(n).normal(size=(n, n))
    kept = 0.0
    for f in range(n):
        rows, columns = ([i for i in (f, f ^ stride) if i < n] for stride in (2, 1))
        kept += np.linalg.svd(weight[np.ix_(rows, columns)], compute_uv=False)[0] ** 2
    least = math.sqrt(1 - kept / (weight**2).sum())
    assert relative(factorized(weight[None], structure)[0], weight) == pytest.approx(least, rel=1e-10)


def test_any_matrix_is_met_better_than_by_nothing() -> None:
    weights = np.random.default_rng(0).normal(size=(3, 16, 16))
    for structure in chains(16):
        for found, weight in zip(factorized(weights, structure), weights, strict=True):
            assert relative(found, weight) < 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_come_in_the_dtype_of_the_weights_and_the_shapes_of_the_structure(dtype: torch.dtype) -> None:
    for structure in chains(8):
        weights = torch.randn(2, 8, 8, dtype=dtype, generator=torch.Generator().manual_seed(0))
        arrays = factorize(weights, structure)
        assert {name: tuple(array.shape[1:]) for name, array in arrays.items()} == structure.shapes
        assert all(array.dtype == dtype and len(array) == 2 for array in arrays.values())


def test_what_cannot_be_identified_is_refused() -> None:
    def told(into: int, out: int, **options: object) -> bool:
        return is_identifiable(build_spm(into, out, **options))  # type: ignore[arg-type]

    assert told(16, 16, stages=4)
    assert not told(16, 16, stages=5), "more stages than the width has strides"
    assert not told(8, 16, stages=3), "two widths"
    assert not told(16, 8, stages=3), "two widths"
    assert not told(1, 1, stages=1), "one feature makes no pair"
    assert told(16, 16, stages=2, schedule=Schedule.BUTTERFLY, block=2)
    assert not told(16, 16, stages=4, schedule=Schedule.RANDOM), "two features meet the same features again"


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 24), st.integers(1, 5), st.sampled_from([2, 4, 32]), st.integers(0, 9), st.sampled_from(Schedule))
def test_identifiable_structures_have_one_path_between_any_two_features(
    n: int, stages: int, block: int, seed: int, schedule: Schedule
) -> None:
    structure = build_spm(n, n, stages=stages, block=block, seed=seed, schedule=schedule)
    # The number of ways from input to output through the stages: ones for numbers count them.
    numbers = {name: np.ones(shape) for name, shape in structure.shapes.items()}
    paths = dense_by_definition(structure, numbers)
    if is_identifiable(structure):
        assert paths.max() == 1


def test_rotations_that_are_found_are_rotations() -> None:
    structure = build_spm(16, 16, stages=4, mixer=Mixer.ROTATION)
    numbers = drawn_numbers(structure)
    numbers["0.scales"][:] = 1
    weight = dense_by_definition(structure, numbers)
    arrays = factorize(torch.from_numpy(weight)[None], structure)
    assert arrays["0.angles"].shape == (1, 32)
    np.testing.assert_allclose(arrays["0.scales"].abs().numpy(), 1, rtol=1e-10)  # an orthogonal map scales nothing


def test_planted_numbers_use_every_order_and_stride() -> None:
    # Guards the oracle's own inputs: a planted target without orders would test half of the closed form.
    structure = build_spm(64, 64, stages=6, block=8)
    groups = structure.chains[0].groups
    assert any(not np.array_equal(group_order(group, 64), np.arange(64)) for group in groups)
    assert list(itertools.chain.from_iterable(group_strides(group) for group in groups)) == [1, 2, 4] * 2
    assert is_identifiable(structure)
