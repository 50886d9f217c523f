"""Plans: as good as trying everything, but for the one step that did not fit."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spm_compress.compress.plan import Curve, Plan, Point, within_budget, within_error
from spm_compress.errors import UsageError


@st.composite
def curves(draw: st.DrawFn) -> list[Curve]:
    found = []
    for i in range(draw(st.integers(1, 4))):
        dense = draw(st.integers(20, 100))
        sizes = draw(st.lists(st.integers(1, dense - 1), min_size=1, max_size=4, unique=True))
        points = tuple(Point(k, size, draw(st.floats(0.01, 1))) for k, size in enumerate(sizes, 1))
        found.append(Curve(f"layer{i}", draw(st.integers(1, 9)), dense, points))
    return found


def cost(plan: Plan) -> float:
    return sum(c.curve.values * c.point.error**2 for c in plan.choices if c.point)


@given(curves(), st.floats(0.05, 1))
def test_a_budget_is_kept_and_spent_nearly_as_well_as_possible(found: list[Curve], share: float) -> None:
    budget = int(share * sum(curve.dense_bytes for curve in found))
    least = sum(min(point.bytes for point in curve.points) for curve in found)
    if budget < least:
        with pytest.raises(UsageError, match="the smallest sizes together take"):
            within_budget(found, share)
        return
    plan = within_budget(found, share)
    assert plan.bytes <= budget
    options = [[*((p.bytes, c.values * p.error**2) for p in c.points), (c.dense_bytes, 0.0)] for c in found]
    best = min(
        sum(cost for _, cost in each) for each in itertools.product(*options) if sum(b for b, _ in each) <= budget
    )
    # One step of one curve may be missing.
    assert cost(plan) <= best + max(c.values * max(p.error for p in c.points) ** 2 for c in found) + 1e-9


def test_the_greedy_plan_is_the_best_where_every_step_fits() -> None:
    steep = Curve("steep", 1, 100, (Point(5, 10, 0.9), Point(10, 20, 0.5), Point(20, 40, 0.4)))
    flat = Curve("flat", 1, 100, (Point(5, 10, 0.9), Point(10, 20, 0.89)))
    plan = within_budget([steep, flat], 0.15)
    assert [choice.point and choice.point.stages for choice in plan.choices] == [10, 5]


def test_an_error_bound_takes_the_smallest_size_or_none() -> None:
    curve = Curve("a", 1, 100, (Point(5, 10, 0.9), Point(10, 20, 0.5), Point(20, 40, 0.4)))
    (choice,) = within_error([curve], 0.5).choices
    assert choice.point == curve.points[1]
    (choice,) = within_error([curve], 0.1).choices
    assert choice.point is None
    assert choice.reason == "stays dense: no size reaches error 0.1 (closest: 0.400 at 40.0% of the bytes)"
