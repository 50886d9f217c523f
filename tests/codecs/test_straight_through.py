"""Training through a codec: forward to the bit what a file holds, backward past the rounding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import gaussian
from torch.nn import functional as F

from spm_compress.codecs import Codec, Grid, Rounding, StoredArray, codecs, integer, sign, straight_through

CODECS = list(codecs().values())
SHAPES = [(1,), (7,), (3, 5), (2, 3, 4), (16, 33), (9, 128)]


def latents(codec: Codec, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Numbers of which some are beyond the ends of every range."""
    return 3 * gaussian(*shape, seed=seed) if codec.largest < 4 else 0.05 * gaussian(*shape, seed=seed)


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(CODECS), st.sampled_from(SHAPES), st.integers(0, 99), st.floats(0.0, 2.0))
def test_what_is_stored_decodes_to_what_was_computed_with(
    codec: Codec, shape: tuple[int, ...], seed: int, spread: float
) -> None:
    if not codec.fits(shape):
        return
    stored = StoredArray.of(codec, latents(codec, shape, seed))
    rounding = Rounding.of(stored)
    moved = latents(codec, shape, seed + 100)
    ratio = None if rounding.scales is None else 1 + spread * gaussian(*rounding.scales.shape, seed=seed)
    computed = straight_through(codec, moved, rounding.scales_at(ratio))
    found = rounding.stored(moved, ratio)
    assert torch.equal(found.decoded(), computed)
    assert found.nbytes == codec.bytes(shape)
    # Once more, as a file that is trained on: the numbers that were decoded round to themselves.
    assert torch.equal(rounding.stored(computed, ratio).decoded(), computed)


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(CODECS), st.sampled_from(SHAPES), st.integers(0, 99))
def test_latents_begin_near_the_weight_and_round_to_what_was_stored(
    codec: Codec, shape: tuple[int, ...], seed: int
) -> None:
    if not codec.fits(shape):
        return
    weight = latents(codec, shape, seed)
    stored = StoredArray.of(codec, weight + 0.3 * latents(codec, shape, seed + 1))  # as error feedback leaves it
    begun = Rounding.latents(stored, weight)
    assert torch.equal(Rounding.of(stored).stored(begun).decoded(), stored.decoded())
    if isinstance(codec, Grid):
        assert bool(((begun - weight).abs() <= (stored.decoded() - weight).abs() * 1.0001 + 1e-7).all())


@pytest.mark.parametrize("codec", [integer(4), integer(3, 32), sign()], ids=lambda codec: codec.name)
def test_rows_that_are_read_are_those_of_the_whole(codec: Grid) -> None:
    table = gaussian(20, 64)
    rounding = Rounding.of(StoredArray.of(codec, table))
    scales = rounding.scales_at(None)
    assert scales is not None
    read = torch.tensor([[3, 3, 19], [0, 7, 1]])
    rows = straight_through(codec, F.embedding(read, table), F.embedding(read, scales))
    assert torch.equal(rows, F.embedding(read, straight_through(codec, table, scales)))


def test_scales_get_the_gradient_of_lsq() -> None:
    # By hand, levels -2 to 1 at a scale of 2: 1.5 is level 1 and missed by 0.25 of the scale, -6 is beyond the end.
    latent = torch.tensor([[1.5, -6.0, 0.4, 9.0]], requires_grad=True)
    scale = torch.tensor([[2.0]], requires_grad=True)
    rounded = straight_through(integer(2), latent, scale)
    assert rounded.tolist() == [[2.0, -4.0, 0.0, 2.0]]
    gradient = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    rounded.backward(gradient)  # type: ignore[no-untyped-call]
    assert latent.grad is not None and torch.equal(latent.grad, gradient)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, torch.tensor([[0.25 - 20.0 - 0.2 * 100 + 1000.0]]))
