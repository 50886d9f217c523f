"""Which file dominates which: worse in nothing, better in something, beyond noise."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spm_compress.pipeline.standing import AGREEMENT_MARGIN, LATENCY_MARGIN, Frontier, Kind, Standing

ONE = Standing("one", "ours", 1000, 0.1, 5000, (0.010, 0.100), 0.95)
# Figures so near to each other that margins matter.
standings = st.builds(
    Standing,
    name=st.just("x"),
    kind=st.just("ours"),
    bytes=st.integers(998, 1002),
    load_seconds=st.floats(0.1, 2),
    peak_bytes=st.integers(1, 9),
    seconds=st.tuples(st.floats(0.0090, 0.0110), st.floats(0.090, 0.110)),
    agreement=st.floats(0.945, 0.955),
)


def frontier(*found: Standing) -> Frontier:
    return Frontier(((1, 16), (8, 128)), found, (), "similarities", 100, {})


def named(name: str, kind: Kind, **changes: object) -> Standing:
    return replace(ONE, name=name, kind=kind, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "dominates", "is_dominated"),
    [
        ({}, False, False),
        ({"bytes": 999}, True, False),
        ({"bytes": 1001}, False, True),
        ({"seconds": (0.010 / 1.06, 0.100)}, True, False),
        ({"seconds": (0.010 / 1.04, 0.100)}, False, False),
        ({"seconds": (0.010, 0.106)}, False, True),
        ({"seconds": (0.010 / 1.06, 0.106)}, False, False),
        ({"agreement": 0.953}, True, False),
        ({"agreement": 0.951}, False, False),
        ({"agreement": 0.947}, False, True),
        ({"bytes": 900, "agreement": 0.949}, True, False),
        ({"bytes": 900, "agreement": 0.947}, False, False),
        ({"bytes": 900, "seconds": (0.010, 0.104)}, True, False),
        ({"bytes": 900, "seconds": (0.010, 0.106)}, False, False),
        ({"load_seconds": 9.0, "peak_bytes": 9}, False, False),
    ],
)
def test_margins(changes: dict[str, object], dominates: bool, is_dominated: bool) -> None:
    other = named("other", "baseline", **changes)
    assert other.dominates(ONE) is dominates
    assert ONE.dominates(other) is is_dominated


@given(standings, standings)
def test_no_two_files_dominate_each_other(a: Standing, b: Standing) -> None:
    assert not (a.dominates(b) and b.dominates(a))
    assert not a.dominates(a)


@given(standings, standings)
def test_who_dominates_is_nowhere_worse_beyond_the_margin(a: Standing, b: Standing) -> None:
    if a.dominates(b):
        assert a.bytes <= b.bytes
        assert max(x / y for x, y in zip(a.seconds, b.seconds, strict=True)) <= 1 + LATENCY_MARGIN + 1e-12
        assert b.agreement - a.agreement <= AGREEMENT_MARGIN + 1e-12


def test_a_frontier_knows_who_dominates_whom() -> None:
    original, good = named("float32", "original", bytes=4000, agreement=1.0), named("int8", "baseline", bytes=900)
    small, ours = named("int4", "baseline", bytes=500, agreement=0.8), named("ours", "ours")
    found = frontier(original, good, small, ours)
    assert found.dominated_by("ours") == ("int8",)
    assert found.dominated_by("int8") == found.dominated_by("int4") == ()
    with pytest.raises(KeyError):
        found.dominated_by("int2")


def test_a_baseline_wins_only_over_every_plan() -> None:
    good, better = named("int8", "baseline", bytes=900), named("int4", "baseline", bytes=800)
    ours, less = named("ours", "ours"), named("less", "ours", bytes=700)
    assert frontier(good, better, ours).dominating_baseline() == better
    assert frontier(good, better, ours, less).dominating_baseline() is None
    assert frontier(good, better).dominating_baseline() is None
    assert frontier(replace(good, kind="original"), ours).dominating_baseline() is None
