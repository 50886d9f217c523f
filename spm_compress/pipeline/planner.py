"""One choice for every weight: of the least harm within the limits, checked end to end.

1. Harms are predicted weight by weight and added up (`harm.py`); the choice is an integer program (`programme.py`).
2. Sums mislead where harms are large. So the plan is run whole on held-out data. Where it does more harm than several
   times the sum, a plan by the weights' own errors is run beside it, and the one that agrees better is taken.
3. A least agreement is reached by bisection over the bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spm_compress.calibration.data import Batch
from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.export.probe import Replacement
from spm_compress.pipeline.candidates import Candidate, Weight
from spm_compress.pipeline.harm import Harms
from spm_compress.pipeline.held_out import Answers, Held
from spm_compress.pipeline.layer_times import LayerTimes
from spm_compress.pipeline.programme import Offer, cheapest, choose

__all__ = ["Limits", "Plan", "Planner"]

_BISECTIONS = 7
_MISLED = 3.0


@dataclass(frozen=True)
class Limits:
    """What a file may take, infinite where that does not matter, and how well it has to agree, 0 where it need not."""

    bytes: float = math.inf
    seconds: float = math.inf
    agreement: float = 0.0


@dataclass(frozen=True)
class Plan:
    """One choice for every weight, by its name; None: left alone.

    bytes, seconds: of the file and of one run, as predicted (seconds 0 where no time was asked for); harm: the sum of
    those predicted; measured: that of all together; agreement: with the original on held-out data, both with float32
    activations.
    """

    chosen: Mapping[str, Candidate | None]
    bytes: float
    seconds: float
    harm: float
    measured: float
    agreement: float


@dataclass
class Planner:
    """All that plans of one model share. Bytes and seconds of everything but the weights grow by what a file shows.

    alone: weight -> bytes that it takes where it is left alone; fit: jobs -> their layers; answer: the model's outputs
    on a batch, with replacements of weights by their digests.
    """

    weights: Sequence[Weight]
    harms: Harms
    held: Held
    alone: Mapping[str, int]
    times: LayerTimes | None
    fit: Callable[[Sequence[Candidate]], Iterator[FittedLayer]]
    answer: Callable[[Batch, Mapping[str, Replacement]], Answers]
    other_bytes: float
    other_seconds: float = 0.0

    def plan(self, limits: Limits) -> tuple[Plan, list[Plan]]:
        """Return the plan within the limits, and all that were tried on the way.

        Where no plan is within them, the smallest there is, or the fastest of those that are small enough.
        """
        offers = [[self._offer(weight, each) for each in _choices(weight)] for weight in self.weights]
        if not limits.agreement:
            tried = [self._tried(offers, limits)]
            if tried[0].measured > _MISLED * tried[0].harm:
                tried.append(self._tried(self._by_errors(offers), limits))
            return max(tried, key=lambda plan: plan.agreement), tried
        tried = [self._tried(offers, limits)]
        best = tried[0]
        low, high = self.other_bytes + cheapest(offers), min(limits.bytes, self.other_bytes + sum(self.alone.values()))
        while best.agreement >= limits.agreement and len(tried) <= _BISECTIONS and low < high:
            middle = math.sqrt(low * high)
            tried.append(self._tried(offers, replace(limits, bytes=middle)))
            if tried[-1].agreement >= limits.agreement:
                best, high = tried[-1], middle
            else:
                low = middle
        return best, tried

    def layers(self, plan: Plan) -> list[FittedLayer]:
        """Return the fits of a plan."""
        return list(self.fit([each for each in plan.chosen.values() if each is not None]))

    def _offer(self, weight: Weight, candidate: Candidate | None) -> Offer:
        size = self.alone[weight.name] if candidate is None else candidate.bytes
        seconds = self.times.of(weight, candidate) if self.times else 0.0
        return Offer(size, self.harms.of(weight, candidate), seconds)

    def _by_errors(self, offers: Sequence[Sequence[Offer]]) -> list[list[Offer]]:
        """Return the offers with the squared error of each weight, by its numbers, in the place of its harm."""
        return [
            [
                replace(offer, harm=math.prod(weight.job.shape) * (0.0 if each is None else each.error**2))
                for each, offer in zip(_choices(weight), own, strict=True)
            ]
            for weight, own in zip(self.weights, offers, strict=True)
        ]

    def _tried(self, offers: Sequence[Sequence[Offer]], limits: Limits) -> Plan:
        most, seconds = limits.bytes - self.other_bytes, limits.seconds - self.other_seconds
        picked = choose(offers, most, seconds)
        if picked is None:
            picked = choose([[replace(each, harm=each.seconds) for each in own] for own in offers], most)
        if picked is None:
            picked = [min(range(len(own)), key=lambda i: own[i].bytes) for own in offers]
        chosen = {weight.name: _choices(weight)[i] for weight, i in zip(self.weights, picked, strict=True)}
        taken = [own[i] for own, i in zip(offers, picked, strict=True)]
        fits = self.fit([each for each in chosen.values() if each is not None])
        replaced = {layer.sha256: Replacement(layer.operator.to_dense(), layer.bias_correction) for layer in fits}

        def answer(batch: Batch) -> Answers:
            return self.answer(batch, replaced)

        return Plan(
            chosen,
            self.other_bytes + sum(each.bytes for each in taken),
            self.other_seconds + sum(each.seconds for each in taken),
            sum(self.harms.of(weight, chosen[weight.name]) for weight in self.weights),
            self.held.harm(answer),
            self.held.agreement(answer),
        )


def _choices(weight: Weight) -> list[Candidate | None]:
    return [*weight.candidates, None]
