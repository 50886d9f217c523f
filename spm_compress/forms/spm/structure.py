"""What an SPM is made of, before any number: groups of stages in chains, and what a stage does to a pair."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from spm_compress.forms.spm.pairing import IDENTITY, Group, Order, pair_count

__all__ = ["Chain", "Gauge", "Mixer"]


class Mixer(enum.Enum):
    """What a stage does to a pair (u, v).

    ROTATION   one angle: (cos u - sin v, sin u + cos v); pairs numbers a stage
    GENERAL    any 2x2 matrix; 2 * width numbers a stage, width once in the canonical or polar gauge
    """

    ROTATION = "rotation"
    GENERAL = "general"


class Gauge(enum.Enum):
    """How the scales that general stages leave open are chosen: those between two stages can go to either.

    FREE       as they come: a diagonal and an off-diagonal coefficient a feature, which descend well
    CANONICAL  every diagonal coefficient is one: (u + c v, v + c' u), the scales gathered at the end of the chain;
               what is stored and exported in float32
    POLAR      every row has norm one: (cos t u + sin t v, ...), an angle a feature; what is stored in a few bits
    """

    FREE = "free"
    CANONICAL = "canonical"
    POLAR = "polar"


@dataclass(frozen=True)
class Chain:
    """Groups of stages over `width` features, and where features are scaled between them.

    scales: ascending group boundaries; 0 is before the first group, len(groups) after the last.
    """

    width: int
    groups: tuple[Group, ...]
    scales: tuple[int, ...] = ()

    @property
    def stages(self) -> int:
        """Number of stages."""
        return sum(group.stages for group in self.groups)

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of every stage."""
        return tuple(stride for group in self.groups for stride in group.strides)

    @property
    def pairs(self) -> int:
        """Number of pairs over all stages."""
        return sum(pair_count(self.width, stride) for stride in self.strides)

    def transposed(self) -> Chain:
        """Return the transposed chain: groups in reverse, each order moved to the group after it."""
        groups: list[Group] = []
        order: Order = IDENTITY
        for group in reversed(self.groups):
            groups.append(replace(group, order=order, descending=not group.descending))
            order = group.order.inverse(self.width)
        if order != IDENTITY:
            groups.append(Group(order, 0))
        last = len(self.groups)
        boundaries = tuple(len(groups) if at == 0 else last - at for at in reversed(self.scales))
        return Chain(self.width, tuple(groups), boundaries)

    def shapes(self, mixer: Mixer, gauge: Gauge) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of numbers that the chain holds."""
        by_stage = (self.stages, self.width)
        named: dict[str, tuple[int, ...]]
        if mixer is Mixer.ROTATION:
            named = {"angles": (self.pairs,)}
        elif gauge is Gauge.FREE:
            named = {"diagonal": by_stage, "off_diagonal": by_stage}
        elif gauge is Gauge.POLAR:
            named = {"directions": by_stage}
        else:
            named = {"off_diagonal": by_stage}
        if self.scales:
            named["scales"] = (len(self.scales), self.width)
        return named
