"""How much the whole model's answers change when one weight is replaced: measured for few candidates, and between them.

1. The harm of a candidate is ||y - y0||^2 / ||y0||^2 of the model's outputs on held-out data, with this one weight
   replaced (`Held.harm`).
2. It is measured at two errors of the dense map, about 2 and 4 bits, and at the largest candidate of each other form.
3. Between and beyond them log harm is linear in log error: for small errors harm is quadratic, for large ones it
   saturates. A form with one point goes through it with the dense map's slope.
4. Weights that the graph holds nowhere by themselves get the median over the others of harm / error^2.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spm_compress.cache_key import cache_key
from spm_compress.checkpoint.files import make_folder, write_whole
from spm_compress.compress.weights import Weights
from spm_compress.export.probe import Replacement
from spm_compress.forms.dense import Dense
from spm_compress.pipeline.candidates import Candidate, Weight

__all__ = ["Harms", "measure_harms", "measured_candidates"]

# Where too little was measured, harm rises with the square of the error; a slope beyond these is noise.
_SLOPE, _SLOPES = 2.0, (1.0, 3.0)
_TINY = 1e-12
_BITS = (4.0, 2.0)

Point = tuple[float, float]  # error, harm


@dataclass(frozen=True)
class Harms:
    """What replacing a weight does to the outputs. points: weight -> kind of form -> what was measured, rising."""

    points: Mapping[str, Mapping[str, Sequence[Point]]]

    def of(self, weight: Weight, candidate: Candidate | None) -> float:
        """Return the harm of a candidate, as it was measured or as rules 3 and 4 have it; 0 of none."""
        if candidate is None or candidate.error <= 0:
            return 0.0
        known = self.points.get(weight.name)
        if not known:
            return self._usual() * math.pow(candidate.error, _SLOPE)
        dense = known.get(Dense.kind, ())
        own = known.get(candidate.kind) or dense or next(iter(known.values()))
        error, harm = min(own, key=lambda point: abs(math.log(max(point[0], _TINY) / candidate.error)))
        slope = _slope(own if len(own) > 1 else dense)
        return harm * math.pow(candidate.error / max(error, _TINY), slope)

    def _usual(self) -> float:
        measured = [point for kinds in self.points.values() for point in kinds.get(Dense.kind, ()) if point[0] > 0]
        return statistics.median(harm / error**_SLOPE for error, harm in measured) if measured else 1.0


def measure_harms(
    weights: Sequence[Weight],
    values: Weights,
    measure: Callable[[Mapping[str, Replacement]], float],
    depends_on: Mapping[str, object],
    cache: Path,
) -> Harms:
    """Measure what rule 2 says. measure: {digest: replacement} -> harm; depends_on: what else it depends on.

    What was measured before is taken from the cache, weight by weight.
    """
    known = _read(cache)
    found: dict[str, dict[str, list[Point]]] = {}
    for weight in weights:
        for candidate in measured_candidates(weight):
            key = cache_key(**depends_on, job=candidate.job, error=repr(candidate.error))
            if key not in known:
                known[key] = measure({candidate.job.sha256: candidate.replacement(values)})
                _write(cache, known)
            points = found.setdefault(weight.name, {}).setdefault(candidate.kind, [])
            points.append((candidate.error, known[key]))
    return Harms({name: {kind: sorted(points) for kind, points in kinds.items()} for name, kinds in found.items()})


def measured_candidates(weight: Weight) -> list[Candidate]:
    """Return the candidates whose harm is measured, under rule 2."""
    kinds: dict[str, list[Candidate]] = {}
    for candidate in weight.candidates:
        kinds.setdefault(candidate.kind, []).append(candidate)
    found: list[Candidate] = []
    for kind, own in kinds.items():
        if kind != Dense.kind:
            found.append(own[-1])
            continue
        numbers = math.prod(weight.job.shape)
        for bits in _BITS:
            nearest = min(own, key=lambda each: abs(8 * each.bytes / numbers - bits))
            if all(nearest is not each for each in found):
                found.append(nearest)
    return found


def _slope(points: Sequence[Point]) -> float:
    if len(points) < 2 or min(points[0]) <= 0 or points[0][0] == points[-1][0] or points[-1][1] <= 0:
        return _SLOPE
    (e0, h0), (e1, h1) = points[0], points[-1]
    return min(max(math.log(h1 / h0) / math.log(e1 / e0), _SLOPES[0]), _SLOPES[1])


def _read(cache: Path) -> dict[str, float]:
    try:
        return {str(name): float(harm) for name, harm in json.loads(cache.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):  # missing, damaged or foreign: measured again
        return {}


def _write(cache: Path, known: Mapping[str, float]) -> None:
    make_folder(cache.parent)
    with write_whole(cache) as temporary:
        temporary.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
