"""What an SPM is made of, before any number: chains of groups, their mixer, their diagonals.

`Structure` is the one place that knows which numbers an SPM has, so parameter counts in
reports, plans and artifacts cannot disagree with what is stored.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from spm_compress.errors import UsageError
from spm_compress.operator.pairing import IDENTITY, Group, Order, Schedule, Table, pair_count

__all__ = ["Chain", "Mixer", "Structure", "build_structure"]


class Mixer(enum.Enum):
    """What a stage does to a pair (u, v).

    ROTATION   one angle: (cos u - sin v, sin u + cos v); pairs numbers a stage
    GENERAL    any 2x2 matrix; 2 * width numbers a stage, the form that descends well
    CANONICAL  (u + c v, v + c' u); width numbers a stage: GENERAL with the redundant scales
               moved to the end of the chain, the form that is stored and exported
    """

    ROTATION = "rotation"
    GENERAL = "general"
    CANONICAL = "canonical"


@dataclass(frozen=True)
class Chain:
    """Groups of stages over `width` features, and where diagonals stand between them.

    diagonals: ascending group boundaries; 0 is before the first group, len(groups) after the last.
    """

    width: int
    groups: tuple[Group, ...]
    diagonals: tuple[int, ...] = ()

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
        boundaries = tuple(len(groups) if at == 0 else last - at for at in reversed(self.diagonals))
        return Chain(self.width, tuple(groups), boundaries)

    def shapes(self, mixer: Mixer) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the arrays of numbers that the chain holds."""
        by_stage = (self.stages, self.width)
        named: dict[str, tuple[int, ...]]
        match mixer:
            case Mixer.ROTATION:
                named = {"angles": (self.pairs,)}
            case Mixer.GENERAL:
                named = {"direct": by_stage, "cross": by_stage}
            case Mixer.CANONICAL:
                named = {"cross": by_stage}
        if self.diagonals:
            named["diagonals"] = (len(self.diagonals), self.width)
        return named


@dataclass(frozen=True)
class Structure:
    """A linear map as one chain, or as two of different width, and a low-rank term that is added.

    Wherever the width changes from n to m (into the first chain, between chains, out of the last),
    feature j takes feature j mod n (m > n), or the sum of all features equal to j modulo m (m < n).
    rank: of the low-rank term `left @ right`, 0 for none. Without chains the low-rank term is the whole map.
    """

    mixer: Mixer
    in_features: int
    out_features: int
    chains: tuple[Chain, ...]
    rank: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the input, of every chain, and of the output."""
        return self.in_features, *(chain.width for chain in self.chains), self.out_features

    @property
    def stages(self) -> int:
        """Number of stages over all chains."""
        return sum(chain.stages for chain in self.chains)

    def shapes(self) -> tuple[dict[str, tuple[int, ...]], ...]:
        """Return name -> shape of the stored numbers, chain by chain, then of the low-rank term if there is one."""
        chains = tuple(chain.shapes(self.mixer) for chain in self.chains)
        if not self.rank:
            return chains
        return *chains, {"left": (self.out_features, self.rank), "right": (self.rank, self.in_features)}

    @property
    def parameter_count(self) -> int:
        """Numbers stored: mixers, diagonals and the low-rank term. Bias and index tables are not among them."""
        return sum(math.prod(shape) for named in self.shapes() for shape in named.values())

    @property
    def tables(self) -> tuple[tuple[int, int], ...]:
        """(chain, group) of every order that follows no formula and is stored as a table."""
        return tuple(
            (i, g)
            for i, chain in enumerate(self.chains)
            for g, group in enumerate(chain.groups)
            if isinstance(group.order, Table)
        )

    @property
    def index_bytes(self) -> int:
        """Bytes of the stored orders: none for affine ones, one int32 a feature for tables."""
        return sum(4 * self.chains[i].width for i, _ in self.tables)

    def stored_bytes(self, itemsize: int) -> int:
        """Bytes of everything stored: mixers in `itemsize` bytes a number, diagonals in float32, index tables.

        Diagonals stay float32: at the end of a canonical chain they span 10 decades (MiniLM, 20 stages).
        """
        numbers = sum(
            math.prod(shape) * (4 if name == "diagonals" else itemsize)
            for named in self.shapes()
            for name, shape in named.items()
        )
        return numbers + self.index_bytes

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds for one row, stage by stage: 1 a feature in canonical form, 2 otherwise."""
        per_feature = 1 if self.mixer is Mixer.CANONICAL else 2
        chains = sum(per_feature * 2 * chain.pairs + len(chain.diagonals) * chain.width for chain in self.chains)
        return chains + self.rank * (self.in_features + self.out_features)

    def transposed(self) -> Structure:
        """Return the structure of the transposed map (numbers: `canonical.transpose`).

        Raises ValueError for CANONICAL, whose scale stands at the output only.
        """
        if self.mixer is Mixer.CANONICAL:
            raise ValueError("the canonical form is not closed under transposition; use the general form")
        chains = tuple(chain.transposed() for chain in reversed(self.chains))
        return Structure(self.mixer, self.out_features, self.in_features, chains, self.rank)

    def canonical(self, *, half: bool = False) -> Structure:
        """Return the structure of the same map in canonical form (numbers and `half`: `canonical.to_canonical`)."""
        after = self.widths[2:]
        chains = []
        for i, chain in enumerate(self.chains):
            groups = len(chain.groups)
            # A sum does not let a scale pass, so a diagonal stays before a narrowing.
            ends = (groups,) if i + 1 == len(after) or chain.width > after[i] else ()
            chains.append(replace(chain, diagonals=tuple(range(1, groups + 1)) if half else ends))
        return replace(self, mixer=Mixer.CANONICAL, chains=tuple(chains))


def build_structure(
    in_features: int,
    out_features: int,
    *,
    stages: int,
    mixer: Mixer = Mixer.GENERAL,
    schedule: Schedule = Schedule.GROUPED,
    block: int = 32,
    seed: int = 0,
) -> Structure:
    """Lay out an SPM of `stages` stages for a weight of shape (out_features, in_features).

    A square map is one chain. A rectangular one has a chain at its larger width and, once there are
    more stages than two groups, one at its smaller width too (`_wide_stages`). Rotations get
    diagonals, without which they reach orthogonal maps only, after every second group.
    The structure of a narrowing map is the transposed one of the widening map.

    Raises UsageError for sizes below 1 or a block that is not a power of two.
    """
    if in_features < 1 or out_features < 1 or stages < 1:
        raise UsageError(f"{out_features}x{in_features} in {stages} stages: an SPM needs 1 feature and 1 stage or more")
    if block < 2 or block & (block - 1):
        raise UsageError(f"`block` {block}: the block width must be a power of two, 2 or more")
    if mixer is Mixer.CANONICAL:
        general = build_structure(in_features, out_features, stages=stages, schedule=schedule, block=block, seed=seed)
        return general.canonical()
    if in_features > out_features:
        return build_structure(
            out_features, in_features, stages=stages, mixer=mixer, schedule=schedule, block=block, seed=seed
        ).transposed()
    share = stages if in_features == out_features else _wide_stages(stages, block.bit_length() - 1)
    groups = schedule.groups(out_features, share, block=block, seed=seed)
    rotation = mixer is Mixer.ROTATION
    if share == stages:
        between = (tuple(range(1, len(groups), 2)) or (0,)) if rotation else ()
        return Structure(mixer, in_features, out_features, (Chain(out_features, groups, between),))
    narrow = schedule.groups(in_features, stages - share, block=block, seed=seed + 1)
    inner = Chain(in_features, narrow, tuple(range(1, len(narrow), 2)) if rotation else ())
    outer = Chain(out_features, groups, tuple(range(0, len(groups), 2)) if rotation else ())
    return Structure(mixer, in_features, out_features, (inner, outer))


def _wide_stages(stages: int, group: int) -> int:
    """Return how many stages stand at the larger width: half of them, and two whole groups first.

    MiniLM 1536x384 at 10 stages (5 a side) reaches 0.976 at 1.9 % of the weights, where the SVD of
    that size reaches 0.947; all 10 at width 1536 reach 0.932 at 2.9 %, the SVD 0.931.
    """
    return min(stages, max(2 * group, math.ceil(stages / 2 / group) * group))
