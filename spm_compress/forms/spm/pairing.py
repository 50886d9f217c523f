"""Which features meet in which stage: orders, groups of stages, schedules.

A *stage* mixes disjoint pairs of features. Stages come in *groups*: first the features
are put in an `order`, then stage k of the group pairs each position with the one `low * 2**k`
away inside blocks of `2**stages` positions. A group therefore multiplies out to one
block-diagonal matrix, which is what makes it cheap to run. The order is never undone: the next group
starts from where this one left the features. So a chain equals pairings in a fixed
frame followed by one permutation of the outputs (`fixed_frame`), which a trained dense matrix
cannot tell from no permutation at all, and saves a copy of all activations.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "IDENTITY",
    "Affine",
    "Group",
    "Order",
    "Schedule",
    "Shuffle",
    "Table",
    "butterfly",
    "fixed_frame",
    "grouped",
    "random",
]

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Affine:
    """The permutation i -> (multiplier * i + offset) mod width; two integers whatever the width."""

    multiplier: int = 1
    offset: int = 0

    def indices(self, width: int) -> Tensor:
        """Return (width,) int64: the feature that stands at each position."""
        return (self.multiplier * torch.arange(width) + self.offset) % width

    def inverse(self, width: int) -> Affine:
        """Return the affine permutation that undoes this one at `width`."""
        back = pow(self.multiplier, -1, width) if width > 1 else 1
        return Affine(back, -back * self.offset % width)


@dataclass(frozen=True)
class Shuffle:
    """The perfect shuffle: features written as `rows` rows are read column by column; one integer.

    rows must divide the width. It runs as a transposition, without any index.
    """

    rows: int

    def indices(self, width: int) -> Tensor:
        """Return (width,) int64: the feature that stands at each position."""
        return torch.arange(width).reshape(self.rows, -1).T.flatten()

    def inverse(self, width: int) -> Shuffle:
        """Return the shuffle that undoes this one at `width`."""
        return Shuffle(width // self.rows)


@dataclass(frozen=True)
class Table:
    """A permutation that follows no formula and has to be stored, one int32 a feature."""

    features: tuple[int, ...]

    def indices(self, width: int) -> Tensor:
        """Return (width,) int64: the feature that stands at each position."""
        del width  # the table has its own
        return torch.tensor(self.features, dtype=torch.int64)

    def inverse(self, width: int) -> Table:
        """Return the permutation that undoes this one."""
        return Table(tuple(torch.argsort(self.indices(width)).tolist()))


Order = Affine | Shuffle | Table
IDENTITY = Affine()


@dataclass(frozen=True)
class Group:
    """Consecutive stages with strides low, 2*low, ..., after the features are put in `order`.

    descending: the strides come largest first, as they do in the transposed map.
    """

    order: Order
    stages: int
    low: int = 1
    descending: bool = False

    @property
    def block(self) -> int:
        """Number of positions that the stages of the group can mix with each other."""
        return 1 << self.stages

    @property
    def strides(self) -> tuple[int, ...]:
        """Distance between the two positions of a pair, stage by stage."""
        rising = tuple(self.low << k for k in range(self.stages))
        return rising[::-1] if self.descending else rising

    def members(self, width: int) -> Tensor:
        """Return (blocks, block) int64: the positions in each block.

        A last block that is not full is completed with positions >= width, which stand for nothing.
        """
        span = self.low * self.block
        base = torch.arange(math.ceil(width / span)) * span
        grid = (
            base[:, None, None]
            + torch.arange(self.low)[None, :, None]
            + torch.arange(self.block)[None, None, :] * self.low
        )
        return grid.reshape(-1, self.block)


def partner(width: int, stride: int) -> Tensor:
    """Return (width,) int64, an involution: the position each position is paired with.

    A position whose partner would lie past the width is its own partner: it is unpaired.
    """
    position = torch.arange(width)
    other = position ^ stride
    return torch.where(other < width, other, position)


def pair_count(width: int, stride: int) -> int:
    """Return how many pairs a stage has: the positions with the bit of `stride` clear, below width - stride."""
    free = max(0, width - stride)
    return free // (2 * stride) * stride + min(free % (2 * stride), stride)


class Schedule(enum.Enum):
    """How the pairings of a chain are chosen."""

    GROUPED = "grouped"
    BUTTERFLY = "butterfly"
    RANDOM = "random"

    def groups(self, width: int, stages: int, *, block: int, seed: int) -> tuple[Group, ...]:
        """Return the groups of a chain of `stages` stages over `width` features."""
        match self:
            case Schedule.GROUPED:
                return grouped(width, stages, block=block, seed=seed)
            case Schedule.BUTTERFLY:
                return butterfly(width, stages, block=block)
            case Schedule.RANDOM:
                return random(width, stages, seed=seed)


def depth_of(width: int) -> int:
    """Return how many strides 1, 2, 4, ... stay below `width`, at least 1."""
    return max(1, (width - 1).bit_length())


def grouped(width: int, stages: int, *, block: int, seed: int) -> tuple[Group, ...]:
    """Strides 1, 2, ..., block/2 inside blocks, before each further group a permutation that spreads them."""
    most = min(block.bit_length() - 1, depth_of(width))
    groups: list[Group] = []
    while stages:
        taken = min(most, stages)
        order = IDENTITY if not groups else _spread(width, groups[-1].block, 1 << taken, seed, len(groups))
        groups.append(Group(order, taken))
        stages -= taken
    return tuple(groups)


def butterfly(width: int, stages: int, *, block: int) -> tuple[Group, ...]:
    """Strides 1, 2, 4, ... below the width, as in the fast Fourier transform, then again from 1."""
    most = block.bit_length() - 1
    depth = depth_of(width)
    groups: list[Group] = []
    level = 0
    while stages:
        taken = min(most, stages, depth - level)
        groups.append(Group(IDENTITY, taken, 1 << level))
        level = (level + taken) % depth
        stages -= taken
    return tuple(groups)


def random(width: int, stages: int, *, seed: int) -> tuple[Group, ...]:
    """Each stage its own matching; costs one stored index a feature and stage."""
    return tuple(Group(Table(tuple(_shuffle(width, seed, stage))), 1) for stage in range(stages))


def fixed_frame(groups: Sequence[Group], width: int) -> tuple[Tensor, Tensor]:
    """Return the chain in the paper's form: pairings that move no feature, then one permutation.

    Returns partners (stages, width) int64 in the frame of the input features, and order (width,)
    int64 such that output position i of the chain is feature order[i] of that frame.
    """
    at = torch.arange(width)
    partners = []
    for group in groups:
        at = at[group.order.indices(width)]
        for stride in group.strides:
            fixed = torch.empty_like(at)
            fixed[at] = at[partner(width, stride)]
            partners.append(fixed)
    return torch.stack(partners) if partners else at.new_empty(0, width), at


def _spread(width: int, before: int, after: int, seed: int, salt: int) -> Order:
    """Choose a permutation that fills each new block from as many old blocks as possible.

    The perfect shuffle of the old blocks, where they divide the width: it fits as well as affine orders and tables
    drawn at random (benchmarks/design_choices.py) and needs no index at run time.
    """
    if width % before == 0 and before < width:
        return Shuffle(width // before)
    return _spread_evenly(width, before, after, seed, salt)


def _spread_evenly(width: int, before: int, after: int, seed: int, salt: int) -> Affine:
    """Choose an affine permutation with steps near width/after: they send neighbours evenly across the width.

    A step taken at random can be degenerate (1, 2, width - 1), and where a perfect spread exists the chain has a
    closed-form factorization (forms/spm/hierarchical.py).
    """
    if width < 3:
        return IDENTITY
    ideal = max(2, round(width / after))
    coprime = (a for a in range(2, width) if math.gcd(a, width) == 1)
    steps = sorted(coprime, key=lambda a: (abs(a - ideal), a))[:8]
    old, new = torch.arange(width) // before, torch.arange(width) // after
    kinds = int(new[-1]) + 1

    def meetings(order: Affine) -> int:
        counts = torch.bincount(old[order.indices(width)] * kinds + new)
        return int((counts * (counts - 1)).sum())

    scores = {order: meetings(order) for order in (Affine(a, c) for a in steps for c in range(min(after, width)))}
    least = min(scores.values())
    best = [order for order, score in scores.items() if score == least]
    return best[next(_stream(seed, salt)) % len(best)]


def _stream(seed: int, salt: int) -> Iterator[int]:
    state = (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03 + 1) & _MASK
    while True:
        # splitmix64 (Steele, Lea, Flood 2014), not a library's generator: the same seed has to
        # give the same bytes when that library changes.
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        yield z ^ (z >> 31)


def _shuffle(width: int, seed: int, salt: int) -> list[int]:
    hashes = _stream(seed, salt)
    keys = [next(hashes) for _ in range(width)]
    return sorted(range(width), key=keys.__getitem__)
