"""The choice among candidates, against every combination there is."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from spm_compress.pipeline.programme import Offer, cheapest, choose

OFFERS = st.lists(
    st.lists(
        st.builds(Offer, st.integers(1, 1000), st.floats(0, 10).map(lambda x: round(x, 3)), st.integers(0, 50)),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=4,
)


@given(OFFERS, st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_no_combination_within_the_limits_does_less_harm(offers: list[list[Offer]], share: float, part: float) -> None:
    most = math.floor(share * sum(max(each.bytes for each in own) for own in offers))
    longest = math.floor(part * sum(max(each.seconds for each in own) for own in offers))

    def taken(picked: tuple[int, ...] | list[int]) -> list[Offer]:
        return [own[i] for own, i in zip(offers, picked, strict=True)]

    within = [
        sum(each.harm for each in taken(picked))
        for picked in itertools.product(*(range(len(own)) for own in offers))
        if sum(each.bytes for each in taken(picked)) <= most and sum(each.seconds for each in taken(picked)) <= longest
    ]
    found = choose(offers, most, longest)
    if not within:
        assert found is None
        return
    assert found is not None
    chosen = taken(found)
    # HiGHS keeps to limits within a millionth of them.
    assert sum(each.bytes for each in chosen) <= most * (1 + 1e-6)
    assert sum(each.seconds for each in chosen) <= longest * (1 + 1e-6)
    largest = max(each.harm for own in offers for each in own)
    assert sum(each.harm for each in chosen) <= min(within) * (1 + 2e-4) + 1e-6 * largest


def test_without_limits_the_least_harm_is_taken_weight_by_weight() -> None:
    offers = [[Offer(10, 3.0), Offer(20, 1.0)], [Offer(5, 0.5), Offer(50, 0.2), Offer(60, 0.4)]]
    assert choose(offers) == [1, 1]
    assert cheapest(offers) == 15
    assert choose([]) == []
