"""Few levels and a scale: what is known of them, and what covariances and odd rows do."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made import gaussian

from spm_compress.codecs import StoredArray, integer, parse_bits, sign, ternary
from spm_compress.codecs.packing import TERNARY, of_bits
from spm_compress.errors import FitError, UsageError

# Relative errors for Gaussian numbers: of a sign sqrt(1 - 2/pi), of three even levels Max, IRE Trans. Inf. Theory 6,
# 1960 (table I); of 2^b even levels one of which is zero by the same integral, found by a search over the scale. Scales
# that are chosen row by row do a little better.
GAUSSIAN = {"1": 0.603, "1.6": 0.436, "2": 0.387, "3": 0.202, "4": 0.109}


def error(text: str, array: torch.Tensor) -> float:
    return float((StoredArray.of(parse_bits(text), array).decoded() - array).norm() / array.norm())


@pytest.mark.parametrize("bits", GAUSSIAN)
def test_gaussian_rows_are_rounded_as_well_as_even_levels_can(bits: str) -> None:
    assert error(bits, gaussian(64, 1024)) == pytest.approx(GAUSSIAN[bits], rel=0.03)


def test_blocks_have_scales_of_their_own() -> None:
    array = gaussian(16, 256) * torch.logspace(-3, 0, 8).repeat_interleave(32)
    errors = [error(bits, array) for bits in ("4", "4/128", "4/32")]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < 0.09


@given(st.sampled_from([*map(of_bits, range(1, 9)), TERNARY]), st.integers(1, 70), st.integers(0, 9))
def test_codes_are_unpacked_as_they_were_packed_and_no_bit_is_spare(packing: object, n: int, seed: int) -> None:
    codes = torch.randint(0, packing.levels, (3, n), generator=torch.Generator().manual_seed(seed))  # type: ignore[attr-defined]
    packed = packing.pack(codes)  # type: ignore[attr-defined]
    assert torch.equal(packing.unpack(packed, (3, n)), codes.to(torch.int16))  # type: ignore[attr-defined]
    bits = math.log2(packing.levels) if packing.levels != 3 else 1.6  # type: ignore[attr-defined]
    assert packed.shape[-1] <= math.ceil(n * bits / 8 - 1e-9) + 2  # a run of bytes for each digit of a code
    assert of_bits(8).pack(codes).shape[-1] == n


@pytest.mark.parametrize("bits", ["8", "4", "3", "2", "1.6", "1", "4/32"])
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_rows_of_zeros_stay_and_no_scale_is_out_of_range(bits: str, size: float) -> None:
    array = size * gaussian(4, 64)
    array[1] = 0
    decoded = StoredArray.of(parse_bits(bits), array).decoded()
    assert torch.equal(decoded[1], torch.zeros(64))
    assert float((decoded - array).double().norm() / array.double().norm()) < 0.7


@pytest.mark.parametrize("bits", ["4", "3", "2", "1.6", "1", "4/32"])
def test_with_a_covariance_less_of_the_outputs_is_lost(bits: str) -> None:
    """Correlated inputs: what rounding a column loses, the columns after it can make up for."""
    weight, mixing = gaussian(48, 64), gaussian(64, 64, seed=1)
    covariance = mixing @ mixing.T + 0.1 * torch.eye(64)

    def lost(metric: torch.Tensor | None) -> float:
        missed = StoredArray.of(parse_bits(bits), weight, metric).decoded() - weight
        return float((missed @ covariance * missed).sum())

    assert lost(covariance) < 0.8 * lost(None)


def test_blocks_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(FitError, match=r"integer\(4,32\): a row of 48 numbers is no whole number of blocks"):
        integer(4, 32).encode(gaussian(2, 48))


def test_bits_in_words() -> None:
    assert parse_bits("4") == integer(4)
    assert parse_bits("4/32") == integer(4, 32)
    assert parse_bits("1.6") == ternary()
    assert parse_bits(" 1 ") == sign()
    for wrong, told in (
        ("9", "a number takes"),
        ("0", "a number takes"),
        ("4/31", "may share"),
        ("16/32", "may share"),
    ):
        with pytest.raises(UsageError, match=told):
            parse_bits(wrong)
