"""Where the bytes go: a size for every weight, out of errors that were reached at several sizes.

Minimizes the sum of the squared relative errors, each counted with its weight's number of values, under a
budget of bytes. On the lower convex hull of each curve the steps to the next size are taken in the order of what they
save per byte, as long as they fit: the greedy solution of the multiple-choice knapsack problem, which is the
optimum up to the one step that did not fit (Sinha and Zoltners, Operations Research 27, 1979).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from spm_compress.errors import UsageError

__all__ = ["Choice", "Curve", "Plan", "Point", "check_budget", "within_budget", "within_error"]


@dataclass(frozen=True)
class Point:
    """What a weight takes and misses at one size. error: relative, of the outputs where inputs are known."""

    stages: int
    bytes: int
    error: float


@dataclass(frozen=True)
class Curve:
    """What one weight reaches at several sizes; `dense_bytes` with error 0 is always one of them."""

    name: str
    values: int
    dense_bytes: int
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Choice:
    """The size of one weight; no point: it stays dense. reason: why, in a few words."""

    curve: Curve
    point: Point | None
    reason: str

    @property
    def bytes(self) -> int:
        """Bytes that the weight takes."""
        return self.curve.dense_bytes if self.point is None else self.point.bytes


@dataclass(frozen=True)
class Plan:
    """One choice for every weight."""

    choices: tuple[Choice, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all weights together."""
        return sum(choice.bytes for choice in self.choices)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all weights before."""
        return sum(choice.curve.dense_bytes for choice in self.choices)


def within_budget(curves: Sequence[Curve], share: float) -> Plan:
    """Return the plan of least error whose bytes are at most this share of the dense ones.

    Raises UsageError, with the least share that can be had, if the smallest sizes together take more.
    """
    hulls = [_hull(curve) for curve in curves]
    at = [0] * len(curves)
    spent = sum(hull[0][0] for hull in hulls)
    dense = sum(curve.dense_bytes for curve in curves)
    budget = math.floor(share * dense)
    check_budget(share, spent, dense)
    queue = [(*_next(hull, 0), i) for i, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(queue)
    while queue:
        _, cost, i = heapq.heappop(queue)
        if spent + cost > budget:
            continue  # what follows on this curve saves less a byte and stands behind this step
        spent += cost
        at[i] += 1
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(queue, (*_next(hulls[i], at[i]), i))
    choices = []
    for curve, hull, index in zip(curves, hulls, at, strict=True):
        point = hull[index][2]
        reason = "bytes save more error here than elsewhere" if point is None else ""
        choices.append(Choice(curve, point, f"stays dense: {reason}" if reason else "within the budget"))
    return Plan(tuple(choices))


def within_error(curves: Sequence[Curve], most: float) -> Plan:
    """Return for every weight the smallest size whose error is at most `most`; it stays dense where there is none."""
    choices = []
    for curve in curves:
        enough = [point for point in curve.points if point.error <= most]
        if enough:
            choices.append(Choice(curve, min(enough, key=lambda point: point.bytes), f"error at most {most:g}"))
            continue
        best = min(curve.points, key=lambda point: point.error, default=None)
        reached = f"{best.error:.3f} at {best.bytes / curve.dense_bytes:.1%} of the bytes" if best else "no size"
        choices.append(Choice(curve, None, f"stays dense: no size reaches error {most:g} (closest: {reached})"))
    return Plan(tuple(choices))


def check_budget(share: float, least: int, dense: int) -> None:
    """Raise UsageError if the smallest sizes together take more than the share of the dense bytes."""
    if least > math.floor(share * dense):
        raise UsageError(
            f"`budget` {share:g}: the smallest sizes together take {least / dense:.2%} of the dense bytes; "
            f"give at least {least / dense + 1e-4:.4f}, or leave weights out with `exclude`"
        )


_Vertex = tuple[int, float, Point | None]  # bytes, squared error times values, the point


def _hull(curve: Curve) -> list[_Vertex]:
    """Return the lower convex hull of a curve, dense included, by rising bytes."""
    vertices: list[_Vertex] = [(point.bytes, point.error**2 * curve.values, point) for point in curve.points]
    vertices.append((curve.dense_bytes, 0.0, None))
    hull: list[_Vertex] = []
    for vertex in sorted(vertices, key=lambda each: (each[0], each[1])):
        if hull and (vertex[1] >= hull[-1][1] or vertex[0] == hull[-1][0]):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], vertex):
            hull.pop()
        hull.append(vertex)
    return hull


def _slope(a: _Vertex, b: _Vertex) -> float:
    """Error saved per byte from a to b."""
    return (a[1] - b[1]) / (b[0] - a[0])


def _next(hull: Sequence[_Vertex], index: int) -> tuple[float, int]:
    """Return the key of the step behind a vertex (most saved per byte first) and its bytes."""
    here, there = hull[index], hull[index + 1]
    return -_slope(here, there), there[0] - here[0]
