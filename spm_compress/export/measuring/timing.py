"""How long does a call take, next to others measured in the same run?"""

from __future__ import annotations

import math
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


# Timed runs in a turn, after one that is not timed.
_BURST = 3


def interleaved(
    calls: Mapping[str, Callable[[], object]], *, repeats: int, seconds: float | None = None
) -> dict[str, Timing]:
    """Time calls interleaved (a, a, a, b, b, b, a, ...), so that what disturbs the machine disturbs all of them.

    The first run of a turn is not timed: it finds the caches as the other call has left them, which no model that runs
    by itself does. repeats: timed runs of each, at least 1; seconds: stop earlier once the turns took this long.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for _ in range(max(1, math.ceil(repeats / _BURST))):
        for name, call in calls.items():
            call()
            for _ in range(min(_BURST, repeats)):
                start = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - start)
        if seconds is not None and time.perf_counter() - began > seconds:
            break
    return {name: Timing(float(np.median(t)), float(np.percentile(t, 90))) for name, t in taken.items()}
