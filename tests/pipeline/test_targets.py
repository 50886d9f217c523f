"""Sizes and times as people write them."""

from __future__ import annotations

import pytest

from spm_compress.errors import UsageError
from spm_compress.pipeline import Targets, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("9MB", 9e6),
        ("7.6 mb", 7.6e6),
        ("500kB", 5e5),
        ("1MiB", 2**20),
        ("123456", 123456),
        ("10%", 0.1),
        ("0.25", 0.25),
    ],
)
def test_sizes(text: str, size: float) -> None:
    assert parse_bytes(text) == pytest.approx(size)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30min", 1800), ("90", 90), ("5ms", 0.005), ("1.5h", 5400), ("0", 0), ("250us", 2.5e-4)]
)
def test_times(text: str, seconds: float) -> None:
    assert parse_seconds(text, "recover") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "nine", "9XB", "-1MB", "0", "0MB", "100%", "150%", "0.0000001MB"])
def test_what_is_no_size_is_said_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"`budget`.*9MB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "soon", "5 weeks", "-3s"])
def test_what_is_no_time_is_said_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match=r"`recover`.*30min"):
        parse_seconds(text, "recover")


def test_a_share_is_of_the_float32_file() -> None:
    assert Targets(0.1).bytes_of(90_000_000) == pytest.approx(9_000_000)
    assert Targets(5e6).bytes_of(90_000_000) == 5e6
    assert Targets().bytes_of(90_000_000) == float("inf")


@pytest.mark.parametrize("agreement", [0.0, -1.0, 1.1, float("nan")])
def test_agreement_is_a_share(agreement: float) -> None:
    with pytest.raises(UsageError, match="`agreement`"):
        Targets(agreement=agreement)
