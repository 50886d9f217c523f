"""How long does a call take, next to others measured in the same run?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = ["Timing", "interleaved"]


@dataclass(frozen=True)
class Timing:
    """Median and 90th percentile of one call, in seconds."""

    median: float
    p90: float


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, warm_up: int = 3, seconds: float | None = None
) -> dict[str, Timing]:
    """Time calls in turns (a, b, a, b, ...), so that what disturbs the machine disturbs all of them.

    repeats: timed turns, at least 1; seconds: stop earlier once the turns took this long (at least 3 are timed), and
    warm up no longer than that.
    """
    began = time.perf_counter()
    for _ in range(warm_up):
        for call in calls.values():
            call()
        if seconds is not None and time.perf_counter() - began > seconds:
            break
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for turn in range(max(1, repeats)):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
        if seconds is not None and turn >= 2 and time.perf_counter() - began > seconds:
            break
    return {name: Timing(float(np.median(t)), float(np.percentile(t, 90))) for name, t in taken.items()}
