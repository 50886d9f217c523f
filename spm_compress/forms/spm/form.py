"""A Stagewise Pairwise Mixer: a chain of sparse stages in the place of a dense product (arXiv 2512.23905)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from spm_compress.codecs import FLOAT32, SCALES, Angle, Codec, Grid
from spm_compress.errors import FitError, UsageError
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import OnStep
from spm_compress.forms.descending import Start, fit_by_descent
from spm_compress.forms.form import Arrays, Fitted, Form, Operator, prefixed, under
from spm_compress.forms.json_values import whole
from spm_compress.forms.sizes import largest_within
from spm_compress.forms.spm.balance import balanced
from spm_compress.forms.spm.begin import begin, scaled
from spm_compress.forms.spm.block_products import coefficients
from spm_compress.forms.spm.canonical import to_canonical, to_general, transpose
from spm_compress.forms.spm.layout_json import chains_json, read_chains
from spm_compress.forms.spm.pairing import Schedule, Table
from spm_compress.forms.spm.plan import FusedPlan, apply_stages
from spm_compress.forms.spm.polar import rounded_in_turn
from spm_compress.forms.spm.structure import Chain, Gauge, Mixer
from spm_compress.forms.spm.target import Target

if TYPE_CHECKING:
    import onnx_ir as ir

    from spm_compress.forms.emitter import Emitter
    from spm_compress.forms.lowering import Lowering
    from spm_compress.forms.settings import FitSettings

__all__ = ["SPM", "build_spm"]


@dataclass(frozen=True)
class SPM(Form):
    """A linear map as one chain of stages, or as two of different width.

    Wherever the width changes from n to m (into the first chain, between chains, out of the last),
    feature j takes feature j mod n (m > n), or the sum of all features equal to j modulo m (m < n).
    """

    kind: ClassVar[str] = "spm"
    fewest_bits: ClassVar[int] = 4  # of an angle

    mixer: Mixer
    in_features: int
    out_features: int
    chains: tuple[Chain, ...]
    gauge: Gauge = Gauge.FREE

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of the input, of every chain, and of the output."""
        return self.in_features, *(chain.width for chain in self.chains), self.out_features

    @property
    def stages(self) -> int:
        """Number of stages over all chains."""
        return sum(chain.stages for chain in self.chains)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """As `Form.shapes`, chain by chain: `0.angles`, or `0.diagonal` and `0.off_diagonal`, and `0.scales`."""
        return prefixed(chain.shapes(self.mixer, self.gauge) for chain in self.chains)

    @property
    def tables(self) -> Mapping[str, Tensor]:
        """As `Form.tables`: `<chain>.order.<group>`, (width,), of the orders that follow no formula."""
        return {
            f"{i}.order.{g}": group.order.indices(chain.width).to(torch.int32)
            for i, chain in enumerate(self.chains)
            for g, group in enumerate(chain.groups)
            if isinstance(group.order, Table)
        }

    @property
    def multiply_adds(self) -> int:
        """As `Form.multiply_adds`, stage by stage: 1 a feature in the canonical gauge, 2 otherwise."""
        per_feature = 1 if self.gauge is Gauge.CANONICAL else 2  # multiplications
        return sum(per_feature * 2 * chain.pairs + len(chain.scales) * chain.width for chain in self.chains)

    @property
    def summary(self) -> Mapping[str, int | str]:
        """As `Form.summary`."""
        return {"stages": self.stages, "mixer": self.mixer.value, "gauge": self.gauge.value}

    def by_chain(self, arrays: Arrays) -> list[dict[str, Tensor]]:
        """Return the arrays of each chain, by their names in it."""
        return [under(arrays, str(i)) for i in range(len(self.chains))]

    def apply(self, arrays: Arrays, x: Tensor) -> Tensor:
        """As `Form.apply`, stage by stage."""
        return apply_stages(self, arrays, x)

    def runner(self) -> FusedPlan:
        """As `Form.runner`: group by group, each multiplied out to blocks."""
        return FusedPlan(self)

    def transposed(self) -> SPM:
        """As `Form.transposed`. Raises ValueError in gauges whose scales stand at the output only."""
        if self.gauge is not Gauge.FREE:
            raise ValueError(f"the {self.gauge.value} gauge is not closed under transposition; use the free one")
        chains = tuple(chain.transposed() for chain in reversed(self.chains))
        return SPM(self.mixer, self.out_features, self.in_features, chains)

    def transpose(self, arrays: Arrays) -> Operator:
        """As `Form.transpose`; rotations stay, other stages come back in the free gauge."""
        return transpose(self, arrays)

    def stored(self, codec: Codec) -> SPM:
        """As `Form.stored`: rotations as they are, others in the canonical gauge, or the polar one for few bits.

        One scaling of the features stands at the end, or after every group where the codec's range is short.
        """
        if self.mixer is Mixer.ROTATION:
            return self
        angle = _angle(codec)
        if angle is None and self.gauge is Gauge.POLAR:
            return replace(self, gauge=Gauge.FREE).stored(codec)
        after = self.widths[2:]
        chains = []
        for i, chain in enumerate(self.chains):
            groups = len(chain.groups)
            # A sum does not let a scale pass, so one stays before a narrowing.
            ends = (groups,) if i + 1 == len(after) or chain.width > after[i] else ()
            everywhere = tuple(range(1, groups + 1))
            is_short = angle is None and codec.largest < FLOAT32.largest
            chains.append(replace(chain, scales=everywhere if is_short else ends))
        return replace(self, gauge=Gauge.CANONICAL if angle is None else Gauge.POLAR, chains=tuple(chains))

    def store(self, arrays: Arrays, codec: Codec, target: Objective | None = None) -> Operator:
        """As `Form.store`; where the canonical gauge is out of the range of float32, the free one is stored."""
        angle = _angle(codec)
        if angle is not None:
            whole = replace(angle, whole=self.mixer is Mixer.ROTATION)
            return rounded_in_turn(self, self.stored(codec), arrays, whole, target)
        if self.mixer is Mixer.ROTATION:
            return Operator(self, arrays)
        if self.gauge is Gauge.POLAR:
            general = to_general(self, arrays)
            return general.form.store(general.arrays, codec, target)
        if codec.largest < FLOAT32.largest:
            return to_canonical(self, arrays, codec)
        try:
            return to_canonical(self, arrays)
        except FitError:  # twice the numbers, and the count says so
            return Operator(self, arrays)

    def codecs(self, codec: Codec) -> Mapping[str, Codec]:
        """As `Form.codecs`: scales stay float32, as they span 10 decades at the end of a chain (MiniLM, 20 stages)."""
        angle = _angle(codec)
        if angle is not None:
            whole = replace(angle, whole=self.mixer is Mixer.ROTATION)
            return {name: SCALES if name.endswith(".scales") else whole for name in self.shapes}
        return {name: FLOAT32 if name.endswith(".scales") else codec for name in self.shapes}

    def trainable(self, arrays: Arrays) -> Operator:
        """As `Form.trainable`: general stages in the free gauge, scales spread evenly."""
        return Operator(self, arrays) if self.gauge is Gauge.FREE else balanced(self, arrays)

    @property
    def trains(self) -> bool:
        """As `Form.trains`: not canonical stages, whose numbers are quotients of many others."""
        return self.gauge is not Gauge.CANONICAL

    def draw(self, arrays: Mapping[str, Tensor]) -> None:
        """As `Form.draw`: rotations, which pass every signal on; canonical stages close to the identity."""
        for chain, named in zip(self.chains, self.by_chain(arrays), strict=True):
            if "angles" in named:
                named["angles"].uniform_(-math.pi, math.pi)
            elif "directions" in named:
                named["directions"].uniform_(0, math.pi)
            elif "diagonal" in named:
                angles = named["off_diagonal"].new_empty(chain.pairs).uniform_(-math.pi, math.pi)
                rotated = coefficients(chain, {"angles": angles})
                named["diagonal"].copy_(rotated[0])
                named["off_diagonal"].copy_(rotated[1])
            else:
                named["off_diagonal"].uniform_(-0.5, 0.5)
            if "scales" in named:
                named["scales"].fill_(1.0)

    def scaled(self, arrays: Arrays, factor: Tensor) -> Arrays:
        """As `Form.scaled`: stages share the factor evenly, and so do the scales between rotations."""
        return scaled(self, arrays, factor)

    @classmethod
    def candidates(cls, settings: FitSettings, out_features: int, in_features: int) -> Sequence[SPM]:
        """As `Form.candidates`: for each mixer that is allowed, as many stages as fit."""
        if settings.mixer is not None:
            return [settings.spm(out_features, in_features)]
        found = []
        for mixer in settings.mixers:

            def of(stages: int, mixer: Mixer = mixer) -> SPM:
                return replace(settings, mixer=mixer, stages=stages).spm(out_features, in_features)

            largest = largest_within(settings.numbers(out_features, in_features), of)
            found += [] if largest is None else [largest]
        return found

    def begin(self, objective: Objective, settings: FitSettings, *, alone: bool) -> Start:
        """As `Descending.begin`."""
        return begin(self, objective, settings, alone=alone)

    def descends(self, objective: Objective) -> bool:
        """As `Form.descends`."""
        return True

    def fit(self, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
        """As `Form.fit`: a descent."""
        return fit_by_descent(self, objective, settings, watch)

    def best_factor(self, objective: Objective, arrays: Arrays) -> Tensor:
        """As `Form.best_factor`, over the entries alone that the chain can reach."""
        target = Target(objective, self)
        return target.objective.best_scale(target.entries(arrays))

    def to_json(self) -> dict[str, Any]:
        """As `Form.to_json`."""
        return {
            "mixer": self.mixer.value,
            "gauge": self.gauge.value,
            "in_features": self.in_features,
            "out_features": self.out_features,
            "chains": chains_json(self.chains),
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], tables: Mapping[str, Tensor]) -> SPM:
        """As `Form.from_json`."""
        mixer, gauge = Mixer(entry["mixer"]), Gauge(entry["gauge"])
        chains = read_chains(entry["chains"], tables)
        if not chains:
            raise ValueError("an SPM without chains")
        form = cls(mixer, whole(entry["in_features"]), whole(entry["out_features"]), chains, gauge)
        if max(form.widths) > max(chain.width for chain in chains):
            raise ValueError(f"an SPM {form.out_features}x{form.in_features} without a chain as wide")
        return form

    def constants(self, emit: Emitter, lowering: Lowering) -> Mapping[str, ir.Value]:
        """As `Form.constants`."""
        from spm_compress.forms.spm.lowering import constants  # ONNX only where it is written

        return constants(self, emit, lowering)

    def lower(self, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
        """As `Form.lower`."""
        from spm_compress.forms.spm.lowering import lower  # ONNX only where it is written

        return lower(self, emit, x, lowering)

    def folded(self, lowering: Lowering) -> int:
        """As `Form.folded`."""
        from spm_compress.forms.spm.lowering import folded  # ONNX only where it is written

        return folded(self, lowering)

    def described(self) -> Sequence[str]:
        """As `Form.described`."""
        lines = []
        for chain in self.chains:
            strides = " | ".join(", ".join(map(str, group.strides)) for group in chain.groups if group.stages)
            lines.append(f"{chain.stages} stages on {chain.width} features, strides {strides}")
        kind = self.mixer.value if self.gauge is Gauge.FREE else self.gauge.value
        return [*lines, f"a stage: {_STAGES[kind]}"]


_STAGES = {
    "rotation": "u' = cos(a) u - sin(a) v, v' = sin(a) u + cos(a) v",
    "general": "x' = diagonal * x + off_diagonal * x[partner]",
    "canonical": "x' = x + off_diagonal * x[partner]",
    "polar": "x' = cos(direction) * x + sin(direction) * x[partner]",
}


def _angle(codec: Codec) -> Angle | None:
    """Return how angles are stored where numbers are stored by this codec; None where there are none."""
    if isinstance(codec, Grid):
        return Angle(codec.bits)
    return codec if isinstance(codec, Angle) else None


def build_spm(
    in_features: int,
    out_features: int,
    *,
    stages: int,
    mixer: Mixer = Mixer.GENERAL,
    schedule: Schedule = Schedule.GROUPED,
    block: int = 32,
    seed: int = 0,
) -> SPM:
    """Lay out an SPM of `stages` stages for a weight of shape (out_features, in_features).

    A square map is one chain. A rectangular one has a chain at its larger width and, once there are
    more stages than two groups, one at its smaller width too (`_wide_stages`). Rotations get scales, without which they
    reach orthogonal maps only, after every second group.
    The form of a narrowing map is the transposed one of the widening map.

    Raises UsageError for sizes below 1 or a block that is not a power of two.
    """
    if in_features < 1 or out_features < 1 or stages < 1:
        raise UsageError(f"{out_features}x{in_features} in {stages} stages: an SPM needs 1 feature and 1 stage or more")
    if block < 2 or block & (block - 1):
        raise UsageError(f"`block` {block}: the block width must be a power of two, 2 or more")
    if in_features > out_features:
        return build_spm(
            out_features, in_features, stages=stages, mixer=mixer, schedule=schedule, block=block, seed=seed
        ).transposed()
    share = stages if in_features == out_features else _wide_stages(stages, block.bit_length() - 1)
    groups = schedule.groups(out_features, share, block=block, seed=seed)
    rotation = mixer is Mixer.ROTATION
    if share == stages:
        between = (tuple(range(1, len(groups), 2)) or (0,)) if rotation else ()
        return SPM(mixer, in_features, out_features, (Chain(out_features, groups, between),))
    narrow = schedule.groups(in_features, stages - share, block=block, seed=seed + 1)
    inner = Chain(in_features, narrow, tuple(range(1, len(narrow), 2)) if rotation else ())
    outer = Chain(out_features, groups, tuple(range(0, len(groups), 2)) if rotation else ())
    return SPM(mixer, in_features, out_features, (inner, outer))


def _wide_stages(stages: int, group: int) -> int:
    """Return how many stages stand at the larger width: half of them, and two whole groups first.

    MiniLM 1536x384 at 10 stages (5 a side) reaches 0.976 at 1.9 % of the weights, where the SVD of
    that size reaches 0.947; all 10 at width 1536 reach 0.932 at 2.9 %, the SVD 0.931.
    """
    return min(stages, max(2 * group, math.ceil(stages / 2 / group) * group))
