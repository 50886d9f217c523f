"""What of the SVD's lead below one bit a weight better rounding of the angles of stages takes back.

    python benchmarks/below_one_bit.py [MATRIX ...] [--sizes 0.15 0.3 0.6 1] [--steps N]

MATRIX: of MATRICES; all unless given; what is known of others and of other sizes is kept. Relative errors of trained
weights, unweighted, everything that is stored counted as in bits_quality.py, every method in its best bits:

    svd             truncated, in 1 to 8 bits, the right factor fitted again to the rounded left one
    svd, descent    its factors in 1 to 4 bits descend, the scales of the ranks in closed form
    float32         the fit of the stages that `in turn` rounds, before it does
    alone           stages, each angle rounded by itself, in 4 to 6 bits; the scales at the end in closed form
    in turn         the error of each stage handed on to the next (what the library does)
    layer's codes   in turn, to 8 or 16 angles that are a Lloyd-Max quantizer of the layer's own, their bytes counted
    stage's codes   the same for every stage
    longer          in turn, in the bits that were best: a fit of three times the steps
    rotations       in turn, in the same bits: twice the stages, of half the angles
    descent         angles in 3 to 5 bits descend, the scales at the end in closed form

Both descents are Adam's, begun at the float32 fit, in two ways: with straight-through gradients (arXiv 1308.3432), or
with more and more numbers frozen where they are rounded to, the nearest first (arXiv 1702.03044). All bits, rates and
ways are tried with a part of the steps; the best two get all of them, where stages begin at the longer fit. Stages that
are more than MOST_WORK allows are left out, bits by bits. Results are kept in benchmarks/results/below_one_bit.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from bits_quality import Matrix, best, in_bits, largest, svd
from origin import origin
from real_models import ROOT, dense_weights
from torch import Tensor

from spm_compress import FitSettings, LowRank, Operator, fit_matrices
from spm_compress.codecs import SCALES, Angle, StoredArray
from spm_compress.codecs.codec import Parts
from spm_compress.codecs.scales import decoded_scales
from spm_compress.forms import StoredOperator
from spm_compress.forms.spm.canonical import transpose
from spm_compress.forms.spm.form import SPM
from spm_compress.forms.spm.plan import FusedPlan
from spm_compress.forms.spm.polar import rounded_in_turn
from spm_compress.forms.spm.structure import Mixer
from spm_compress.forms.spm.workspace import Workspace

RESULTS = ROOT / "benchmarks" / "results" / "below_one_bit.json"
MATRICES = {
    "minilm-query": ("minilm", "encoder.layer.0.attention.self.query.weight"),
    "rxnfp-query": ("rxnfp", "bert.encoder.layer.0.attention.self.query.weight"),
    "minilm-intermediate": ("minilm", "encoder.layer.0.intermediate.dense.weight"),
    "crepe-full": ("crepe-full", "classifier.weight"),
}
SIZES = (0.15, 0.3, 0.6, 1.0)
# Stages times entries: 75 stages on 384x384 take half as much, and a descent of them a minute.
MOST_WORK = 20e6
RATES = (0.03, 0.2, 1.0)
_TRIAL = 0.15
_LONGER = 3
_FROZEN_BY = 0.9
_LLOYD_STEPS = 50


class Exact(Angle):
    """Angles that are not rounded at all."""

    def encode(self, array: Tensor, metric: Tensor | None = None) -> Parts:
        """As `Codec.encode`."""
        return {"angles": array}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """As `Codec.decode`."""
        return parts["angles"]


@dataclass(frozen=True)
class Codebook(Angle):
    """Angles as the nearest of 2^bits in float16: those of the stage itself, or `levels` for all of a layer."""

    per_stage: bool = True
    levels: tuple[float, ...] = ()

    def bytes(self, shape: tuple[int, ...]) -> int:
        """As `Codec.bytes`."""
        books = shape[0] if self.per_stage else 1
        return super().bytes(shape) + books * 2 * (1 << self.bits)

    def encode(self, array: Tensor, metric: Tensor | None = None) -> Parts:
        """As `Codec.encode`, of one stage."""
        levels = torch.tensor(self.levels or lloyd_max(array, self.bits), dtype=torch.float64)
        nearest = torch.bucketize(array.double(), (levels[1:] + levels[:-1]) / 2)
        return {"angles": levels[nearest]}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """As `Codec.decode`."""
        return parts["angles"]


def lloyd_max(values: Tensor, bits: int) -> tuple[float, ...]:
    """Return the 2^bits levels, rising, of least squared error (Lloyd 1982), begun at quantiles; as float16."""
    values = values.flatten().double().sort().values
    levels = values[((torch.arange(1 << bits) + 0.5) * len(values) / (1 << bits)).long()]
    for _ in range(_LLOYD_STEPS):
        owner = torch.bucketize(values, (levels[1:] + levels[:-1]) / 2)
        counts = torch.bincount(owner, minlength=len(levels))
        sums = torch.bincount(owner, values, minlength=len(levels))
        levels = torch.where(counts > 0, sums / counts.clamp(min=1), levels)
    return tuple(levels.half().double().tolist())


class Stages:
    """Stages for one matrix: the fits, by their settings, and what rounding makes of them."""

    def __init__(self, matrix: Matrix, steps: int) -> None:
        self.matrix, self.steps = matrix, steps
        self.fitted = cache(self._fitted)

    def _fitted(self, settings: FitSettings) -> Operator:
        (result,) = fit_matrices(self.matrix.weight[None], settings)
        return result.operator

    def settings(self, codec: Angle, size: float, mixer: Mixer = Mixer.GENERAL) -> FitSettings | None:
        """Return those of the most stages within a size; None if there is none, or if they take too long."""
        out, into = self.matrix.shape
        stages = largest((out, into), size, codec, lambda k: FitSettings(stages=k, mixer=mixer).spm(out, into))
        is_affordable = 0 < stages * out * into <= MOST_WORK
        return FitSettings(stages=stages, steps=self.steps, mixer=mixer) if is_affordable else None

    def longer(self, settings: FitSettings) -> FitSettings:
        """Return those of a fit that is not cut short."""
        return replace(settings, steps=_LONGER * self.steps)

    def exact(self, settings: FitSettings) -> Operator:
        """Return a fit in the polar gauge, its angles not rounded."""
        operator = self.fitted(settings)
        assert isinstance(operator.form, SPM)
        return rounded_in_turn(operator.form, operator.form.stored(Angle(8)), operator.arrays, Exact(8), None)

    def in_turn(self, settings: FitSettings, codec: Angle) -> float:
        """Return the error with each stage given what rounding made of those before."""
        operator = self.fitted(settings)
        form = operator.form
        assert isinstance(form, SPM)
        whole = replace(codec, whole=form.mixer is Mixer.ROTATION)
        made = rounded_in_turn(form, form.stored(whole), operator.arrays, whole, self.matrix.objective)
        return self.matrix.error(with_stored_scales(made))

    def alone(self, settings: FitSettings, codec: Angle) -> float:
        """Return the error with each angle rounded by itself."""
        exact = self.exact(settings)
        polar = Polar(exact, self.matrix.weight)
        unit = math.pi / (1 << codec.bits)
        rounded = {name: unit * to_middle(each / unit) for name, each in polar.angles(exact.arrays).items()}
        return self.matrix.error(with_stored_scales(polar.with_scales({**exact.arrays, **rounded})))


class Polar:
    """Maps of one form in the polar gauge, with the scales at the end that are best for a weight."""

    def __init__(self, like: Operator, weight: Tensor) -> None:
        assert isinstance(like.form, SPM)
        self.form, self.weight = like.form, weight
        self._last = f"{len(self.form.chains) - 1}.scales"
        # A narrowing map is multiplied out as its transpose: the identity it is probed with is the smaller one.
        self._narrows = weight.shape[0] < weight.shape[1]
        self._plan = FusedPlan(transpose(like.form, like.arrays).form if self._narrows else like.form)  # type: ignore[arg-type]
        self._workspace = Workspace()

    def angles(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those of every chain."""
        return {name: each for name, each in arrays.items() if name.endswith("directions")}

    def scales(self, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those between chains, which no closed form has."""
        return {name: each for name, each in arrays.items() if name.endswith("scales") and name != self._last}

    def matrix(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the matrix (out, in) without its last scales, and these (out,); once differentiable."""
        batch = {name: each[None] for name, each in arrays.items()}
        batch[self._last] = torch.ones(1, 1, self.form.out_features)
        if self._narrows:
            batch = dict(transpose(self.form, batch).arrays)
        (product,) = self._plan.dense(self._plan.prepared(batch, self._workspace.blocks))
        product = product.mT if self._narrows else product
        with torch.no_grad():  # where they are best, the error does not change with them
            power = product.square().sum(1)
            scales = (product * self.weight).sum(1) / torch.where(power > 0, power, 1)
        return product, scales

    @torch.no_grad()
    def with_scales(self, arrays: Mapping[str, Tensor]) -> Operator:
        """Return the map of arrays with the best last scales."""
        _, scales = self.matrix(arrays)
        return Operator(self.form, {**arrays, self._last: scales[None]})


def with_stored_scales(operator: Operator) -> Operator:
    """Return an operator whose angles are rounded with its scales as they are stored."""
    return Operator(
        operator.form,
        {
            name: StoredArray.of(SCALES, each).decoded() if name.endswith("scales") else each
            for name, each in operator.arrays.items()
        },
    )


def to_middle(turns: Tensor) -> Tensor:
    """Return angles, in parts of the turn, as `Angle` rounds them, but on all of the turn.

    The second half of it is as good as the first: a row whose sign changes changes that of angles after it, and the
    codes lie evenly about zero.
    """
    return turns.floor() + 0.5


@dataclass(frozen=True)
class Way:
    """How numbers descend to where they are rounded to; rate: Adam's, of numbers a level apart."""

    rate: float
    freezes: bool


def least(
    error_of: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    begin: Sequence[Tensor],
    free: Sequence[Tensor],
    rounded: Callable[[Tensor], Tensor],
    way: Way,
    steps: int,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return rounded numbers, and free ones beside them, of the least squared error on the way of a descent."""
    latents = [each.clone().requires_grad_() for each in begin]
    beside = [each.clone().requires_grad_() for each in free]
    held, frozen = [each.clone() for each in begin], [torch.zeros_like(each, dtype=torch.bool) for each in begin]
    adam = torch.optim.Adam([*latents, *beside], betas=(0.9, 0.99))
    lowest, kept = math.inf, ([rounded(each) for each in begin], list(free))
    for step in range(steps + 1):
        if way.freezes:
            share = min(1.0, step / (_FROZEN_BY * steps))
            freeze(share, latents, held, frozen, rounded)
            values = [torch.where(*each) for each in zip(frozen, held, latents, strict=True)]
        else:
            share = 1.0
            values = [each + (rounded(each) - each).detach() for each in latents]
        adam.zero_grad()
        error = error_of(values, beside)
        if share == 1 and float(error.detach()) < lowest:
            lowest = float(error.detach())
            kept = [each.detach().clone() for each in values], [each.detach().clone() for each in beside]
        if step == steps or (share == 1 and way.freezes and not beside):
            break
        rising, falling = min(1.0, (step + 1) / (0.05 * steps + 1)), (1 + math.cos(math.pi * step / steps)) / 2
        adam.param_groups[0]["lr"] = way.rate * rising * falling
        error.backward()
        adam.step()
    return kept


@torch.no_grad()
def freeze(
    share: float,
    latents: Sequence[Tensor],
    held: Sequence[Tensor],
    frozen: Sequence[Tensor],
    rounded: Callable[[Tensor], Tensor],
) -> None:
    """Hold this share of the latents where they are rounded to, in place: those that are, then the nearest."""
    apart = [
        torch.where(still, -1.0, (rounded(each) - each).abs()) for each, still in zip(latents, frozen, strict=True)
    ]
    together = torch.cat([each.flatten() for each in apart])
    count = round(share * together.numel())
    if not count:
        return
    farthest = together.kthvalue(count).values
    for each, at, still, distance in zip(latents, held, frozen, apart, strict=True):
        new = ~still & (distance <= farthest)
        at[new] = rounded(each)[new]
        still |= new


def descended_stages(stages: Stages, size: float, bits: int, way: Way, steps: int) -> float | None:
    """Return the error of angles that descended, as the library stores them."""
    settings = stages.settings(Angle(bits), size)
    if settings is None:
        return None
    if steps == stages.steps:  # not only a trial
        settings = stages.longer(settings)
    exact, weight = stages.exact(settings), stages.matrix.weight
    polar = Polar(exact, weight)
    unit = math.pi / (1 << bits)
    angles, between = polar.angles(exact.arrays), polar.scales(exact.arrays)

    def arrays(values: Sequence[Tensor], logarithms: Sequence[Tensor]) -> dict[str, Tensor]:
        found = {name: unit * value for name, value in zip(angles, values, strict=True)}
        # Scales between chains are of either sign and any size, and a step of a level would be a large one.
        scales = zip(between.items(), logarithms, strict=True)
        return {**found, **{name: each * (0.1 * logarithm).exp() for (name, each), logarithm in scales}}

    def error_of(values: Sequence[Tensor], logarithms: Sequence[Tensor]) -> Tensor:
        product, scales = polar.matrix(arrays(values, logarithms))
        return (scales[:, None] * product - weight).square().sum() / weight.square().sum()

    begin = [each / unit for each in angles.values()]
    free = [torch.zeros_like(each) for each in between.values()]
    kept = least(error_of, begin, free, to_middle, way, steps)
    found = StoredOperator.of(polar.with_scales(arrays(*kept)), Angle(bits))
    assert found.nbytes <= size * weight.numel() / 8
    return stages.matrix.error(found.decoded())


def descended_factors(matrix: Matrix, size: float, bits: int, way: Way, steps: int) -> float | None:
    """Return the error of the factors of an SVD that descended."""
    out, into = matrix.shape
    weight = matrix.weight
    rank = min(out, into, largest(matrix.shape, size, in_bits(bits), lambda k: LowRank(into, out, k)))
    if not rank:
        return None
    form = LowRank(into, out, rank)
    (fitted,) = form.fit(matrix.objective, FitSettings(), None)
    codecs = {"left": in_bits(bits, "column"), "right": in_bits(bits, "row")}
    scales_of = {"left": (1, rank), "right": (rank, 1)}
    begin = []
    for name, array in fitted.arrays.items():
        scales = decoded_scales(codecs[name].encode(array), scales_of[name])
        begin.append(array / torch.where(scales == 0, 1, scales))

    def rounded(latent: Tensor) -> Tensor:
        if bits == 1:
            return torch.where(latent < 0, -1.0, 1.0)
        half = 1 << (bits - 1)
        return latent.round().clamp(-half, half - 1)

    @torch.no_grad()
    def scaled(left: Tensor, right: Tensor) -> Tensor:
        """Return (rank,) the scales of least error, the solution of a linear system."""
        gram = (left.T @ left) * (right @ right.T)
        gram.diagonal().add_(1e-6 * gram.diagonal().mean())
        found: Tensor = torch.linalg.solve(gram, ((left.T @ weight) * right).sum(1))
        return found

    def error_of(values: Sequence[Tensor], free: Sequence[Tensor]) -> Tensor:
        left, right = values
        return ((left * scaled(left, right)) @ right - weight).square().sum() / weight.square().sum()

    (left, right), _ = least(error_of, begin, [], rounded, way, steps)
    scales = StoredArray.of(SCALES, scaled(left, right)).decoded()
    return matrix.error(Operator(form, {"left": left * scales, "right": right}))


def searched(
    error_at: Callable[[int, Way, int], float | None], bits: Iterable[int], ways: Iterable[Way], steps: int
) -> dict[str, Any] | None:
    """Return the least error over bits and ways: the best two after a part of the steps get all of them."""
    trial = round(_TRIAL * steps)
    tried = [(error, *at) for at in itertools.product(bits, ways) if (error := error_at(*at, trial)) is not None]
    tried.sort(key=lambda each: each[0])
    found = [{"error": error_at(b, way, steps), "bits": b, **asdict(way)} for _, b, way in tried[:2]]
    return min(found, key=lambda each: each["error"], default=None)


def measured(stages: Stages, size: float, steps: int) -> dict[str, Any]:
    """Return what every method reaches at a size; None where nothing is small enough or it takes too long."""
    matrix = stages.matrix

    def of_angles(error_of: Callable[[FitSettings, Angle], float], most: int, codec: Angle) -> Any:
        def error_in(bits: int) -> float | None:
            own = replace(codec, bits=bits)
            settings = None if bits > most else stages.settings(own, size)
            return None if settings is None else error_of(settings, own)

        return error_in

    def of_layer(settings: FitSettings, codec: Angle) -> float:
        angles = Polar(exact := stages.exact(settings), matrix.weight).angles(exact.arrays).values()
        levels = lloyd_max(torch.cat([each.flatten() for each in angles]), codec.bits)
        return stages.in_turn(settings, Codebook(codec.bits, per_stage=False, levels=levels))

    ways = [Way(rate, freezes) for rate in RATES for freezes in (False, True)]
    found: dict[str, Any] = {
        "svd": svd(matrix, size),
        "svd, descent": searched(partial(descended_factors, matrix, size), range(1, 5), ways, steps),
        "alone": best(of_angles(stages.alone, 6, Angle(8)), 4, 5),
        "in turn": best(of_angles(stages.in_turn, 6, Angle(8)), 4, 5),
        "layer's codes": best(of_angles(of_layer, 4, Codebook(8, per_stage=False)), 3, 4),
        "stage's codes": best(of_angles(stages.in_turn, 4, Codebook(8)), 3, 4),
        "descent": searched(partial(descended_stages, stages, size), range(3, 6), ways, steps),
    }
    if found["in turn"] is not None:
        codec = Angle(int(found["in turn"]["bits"]))
        plain = stages.settings(codec, size)
        assert plain is not None
        found["float32"] = {"error": matrix.error(stages.fitted(plain))}
        found["longer"] = {"error": stages.in_turn(stages.longer(plain), codec)}
        rotations = stages.settings(codec, size, Mixer.ROTATION)
        found["rotations"] = None if rotations is None else {"error": stages.in_turn(rotations, codec)}
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("matrices", nargs="*", default=list(MATRICES), help=", ".join(MATRICES))
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args(arguments)
    for name in asked.matrices:
        model, weight = MATRICES[name]
        stages = Stages(Matrix.of(dense_weights(model)[weight], None), asked.steps)
        for size in asked.sizes:
            found = measured(stages, size, asked.steps)
            print(name, size, json.dumps(found), flush=True)
            rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
            rows.setdefault(name, {})[f"{size:g}"] = {
                **origin(__file__, arguments),
                "reached": found,
            }
            ordered = {each: dict(sorted(rows[each].items())) for each in MATRICES if each in rows}
            RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
