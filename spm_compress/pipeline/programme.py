"""One candidate for every weight: the multiple-choice knapsack problem, solved as an integer program by HiGHS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

__all__ = ["Offer", "cheapest", "choose"]

# Of the optimum: proving the last ten thousandth can take a hundred times as long as finding it.
_GAP = 1e-4


@dataclass(frozen=True)
class Offer:
    """What a weight could become: its bytes, the harm that it does, and the seconds that it takes in a run."""

    bytes: int
    harm: float
    seconds: float = 0.0


def choose(
    offers: Sequence[Sequence[Offer]], most_bytes: float = math.inf, most_seconds: float = math.inf
) -> list[int] | None:
    """Return the index of one offer of each weight, of the least harm in all within the limits; None if none is.

    Minimizes sum h_lc x_lc over x_lc in {0, 1}, sum_c x_lc = 1 for every weight l, sum b_lc x_lc <= most_bytes, and
    sum t_lc x_lc <= most_seconds (Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11). Deterministic.
    """
    if not offers:
        return []
    flat = [offer for each in offers for offer in each]
    owner = np.repeat(np.arange(len(offers)), [len(each) for each in offers])
    ones = csr_array((np.ones(len(flat)), (owner, np.arange(len(flat)))), shape=(len(offers), len(flat)))
    constraints = [LinearConstraint(ones, 1, 1)]
    for limit, values in (
        (most_bytes, [offer.bytes for offer in flat]),
        (most_seconds, [offer.seconds for offer in flat]),
    ):
        if math.isfinite(limit):
            # In units of the limit: HiGHS takes its tolerances absolutely.
            constraints.append(LinearConstraint(np.array(values)[None] / max(limit, 1e-12), -np.inf, 1))
    harm = np.array([offer.harm for offer in flat])
    found = milp(
        harm / max(float(harm.max()), 1e-300),
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, 1),
        constraints=constraints,
        options={"mip_rel_gap": _GAP},
    )
    if found.x is None:
        return None
    ends = np.cumsum([len(each) for each in offers])
    return [int(np.argmax(part)) for part in np.split(found.x, ends[:-1])]


def cheapest(offers: Sequence[Sequence[Offer]]) -> int:
    """Return the bytes of the smallest offers together."""
    return sum(min(offer.bytes for offer in each) for each in offers)
