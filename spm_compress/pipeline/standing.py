"""Files of one model side by side: what each costs and keeps, and which of them another one dominates.

1. A file *dominates* another if it is worse in nothing and better in something: bytes, latency at each size, agreement.
2. Worse and better are beyond noise: bytes are exact, the rest has the margins below. So no two files dominate each
   other.
3. Load time, peak memory and the user's score are told, not compared: they are no targets of every user, and a file
   that loses in one of them alone is still the better one for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

__all__ = ["AGREEMENT_MARGIN", "LATENCY_MARGIN", "Contender", "Frontier", "Kind", "LeftOut", "Standing"]

# Medians of MiniLM in int8 beside its own copy, on two cores that seven processes wanted: of 15 runs or more 2 to 4 %
# apart in five of six cases, 16 % in one; of three runs 16 %. On a machine so busy no margin is enough.
LATENCY_MARGIN = 0.05
# int8 of MiniLM on four other hundreds of sentences: 0.9871 to 0.9888, and 0.942 to 0.946 with one scale a tensor.
AGREEMENT_MARGIN = 0.002

Kind = Literal["original", "baseline", "ours"]
# batch, and size of all other dynamic axes; None for a model that has no dynamic axis but the batch
Shape = tuple[int, int | None]


@dataclass(frozen=True)
class Contender:
    """An ONNX file with the name that it is called by."""

    name: str
    path: Path
    kind: Kind


@dataclass(frozen=True)
class LeftOut:
    """A baseline that could not be made or run, and why, in one line."""

    name: str
    why: str


@dataclass(frozen=True)
class Standing:
    """What a file was measured to be.

    bytes: of the file and its data files; load_seconds: from file to session in a fresh process; peak_bytes: of memory,
    of a process that loads it and runs it once; seconds: median of a run at each shape; agreement: of its answers with
    the original's, 1 is perfect; score: of the user's own measure, None without one.
    """

    name: str
    kind: Kind
    bytes: int
    load_seconds: float
    peak_bytes: int
    seconds: tuple[float, ...]
    agreement: float
    score: float | None = None

    def dominates(self, other: Standing) -> bool:
        """Tell whether it is worse than the other in nothing and better in something, beyond noise."""
        pairs = list(zip(self.seconds, other.seconds, strict=True))
        is_worse = (
            self.bytes > other.bytes
            or any(ours > theirs * (1 + LATENCY_MARGIN) for ours, theirs in pairs)
            or self.agreement < other.agreement - AGREEMENT_MARGIN
        )
        is_better = (
            self.bytes < other.bytes
            or any(theirs > ours * (1 + LATENCY_MARGIN) for ours, theirs in pairs)
            or other.agreement < self.agreement - AGREEMENT_MARGIN
        )
        return is_better and not is_worse


@dataclass(frozen=True)
class Frontier:
    """All that was measured in one run; the original is the first of `standings`.

    shapes: at which `Standing.seconds` were taken; measure: what agreement is of (`answers.Measure`); samples: how many
    it was taken on; settings: fields of FrontierSettings.
    """

    shapes: tuple[Shape, ...]
    standings: tuple[Standing, ...]
    left_out: tuple[LeftOut, ...]
    measure: str
    samples: int
    settings: Mapping[str, object]

    def dominated_by(self, name: str) -> tuple[str, ...]:
        """Return the names of the files that dominate the one of this name. Raises KeyError for no such name."""
        one = {each.name: each for each in self.standings}[name]
        return tuple(each.name for each in self.standings if each.dominates(one))

    def dominating_baseline(self) -> Standing | None:
        """Return the baseline that dominates every file of ours, the smallest of several; None if none does."""
        ours = [each for each in self.standings if each.kind == "ours"]
        found = [
            each for each in self.standings if each.kind == "baseline" and all(each.dominates(plan) for plan in ours)
        ]
        return min(found, key=lambda each: (each.bytes, sum(each.seconds)), default=None) if ours else None
