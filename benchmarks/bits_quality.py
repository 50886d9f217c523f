"""Error against bits a weight on trained weights, every form in its best bits; and what 8 bits of an angle cost.

    python benchmarks/bits_quality.py [MODEL ...] [--sizes 0.15 0.3 0.6 1 1.6 2 3 4] [--steps N] [--most N]

MODEL: of examples/fetch_model.py; all unless given. --most: so many matrices of each model, spread over its shapes.
Relative errors of the weights; where there is data (minilm, ppocr) also of the outputs, weighted by the inputs that
it gives (`real_models.calibration_data`). Everything that is stored counts, scales and units too. Of each matrix and
size:

    spm          as many stages as the size holds, in the bits of 4 to 8 that end lowest (angles, rounded in turn); left
                 out, with the reason, where the chain would be longer than LONGEST or the matrix larger than MOST_WORK
    svd          truncated, its factors in 1 to 8 bits, a scale a rank: the left one rounded, the right one fitted to it
                 again before it is rounded too
    monarch      the nearest one (weighted: a descent from there), its blocks in 1 to 8 bits
    pruned       the largest values (weighted: times the root mean square of their input), in 1 to 8 bits with one
                 scale, and as many bits as the entropy of their positions
    dense        1, 1.6, 2, 3 and 4 bits, a scale a row, at their own sizes; weighted: errors handed on (GPTQ)
    bound        what no code can be below for Gaussian numbers

Bits are walked to, from a guess to either side as long as the error falls. `rise`: by how much the error of 10 and 20
stages grows when their float32 numbers become angles of 8 bits. Results are kept in
benchmarks/results/bits_quality.json, with those of models that are not asked for.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from origin import origin
from real_models import DENSE_WEIGHTS, ROOT, calibration_data, covariances, dense_weights
from torch import Tensor

from spm_compress import Dense, FitSettings, LowRank, Monarch, Operator, fit_matrices
from spm_compress.codecs import Codec, StoredArray, integer, parse_bits, with_shared
from spm_compress.fitting.objective import Objective, output_error
from spm_compress.forms import Form, StoredOperator
from spm_compress.forms.form import relative_error, stored_bytes

RESULTS = ROOT / "benchmarks" / "results" / "bits_quality.json"
SIZES = (0.15, 0.3, 0.6, 1.0, 1.6, 2.0, 3.0, 4.0)
DENSE_BITS = ("1", "1.6", "2", "3", "4")
FORMS = ("spm", "svd", "monarch", "pruned", "dense", "bound")
# A step of the descent takes stages times entries: 200 steps of 66 stages on 1536x384 take half a minute.
LONGEST, MOST_WORK = 76, 40e6


@dataclass(frozen=True)
class Matrix:
    """A weight (out, in) at the norm of an orthogonal one, where one step size serves all, and its inputs' covariance.

    metric: (in, in), or None where the plain error counts.
    """

    weight: Tensor
    metric: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, metric: Tensor | None) -> Matrix:
        """Return a weight of any norm as one."""
        return cls(weight * (math.sqrt(min(weight.shape)) / weight.norm()), metric)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def objective(self) -> Objective:
        """What a fit of it minimizes, a batch of one."""
        return Objective(self.weight[None], None if self.metric is None else self.metric[None])

    def error(self, operator: Operator) -> float:
        """Return the relative error of what stands for it."""
        if self.metric is None:
            return relative_error(self.weight, operator)
        return output_error(self.weight, operator.to(torch.float64).to_dense(), self.metric)

    def error_of(self, approximation: Tensor) -> float:
        """As `error`, of a matrix."""
        return self.error(Operator(Dense(self.shape[1], self.shape[0]), {"weight": approximation}))


def chosen(model: str, most: int) -> Iterator[tuple[str, Tensor]]:
    """Yield weights of a model, as many of each shape as of any other."""
    by_shape: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name, weight in dense_weights(model).items():
        by_shape.setdefault(tuple(weight.shape), []).append((name, weight.float()))
    each = max(1, most // len(by_shape))
    for alike in list(by_shape.values())[:most]:
        yield from alike[:: max(1, len(alike) // each)][:each]


def largest(shape: tuple[int, int], size: float, codec: Codec, make: Callable[[int], Form]) -> int:
    """Return the largest k for which make(k) is within `size` bits a weight; 0 if there is none."""
    most = size * shape[0] * shape[1] / 8

    def is_larger(k: int) -> bool:
        return stored_bytes(make(k), codec) > most

    beyond = next(2**i for i in itertools.count() if is_larger(2**i))
    return bisect.bisect_left(range(1, beyond), True, key=is_larger)


def in_bits(bits: int, shared: str = "row") -> Codec:
    """Return the codec of whole numbers, or of signs in 1 bit."""
    return with_shared(parse_bits(str(bits)), shared)


def best(error_in: Callable[[int], float | None], fewest: int, begin: int) -> dict[str, float] | None:
    """Return the least error over bits and those bits, walked to from `begin`; None if nothing is small enough."""
    known: dict[int, float] = {}

    def at(bits: int) -> float:
        if bits not in known:
            found = error_in(bits) if fewest <= bits <= 8 else None
            known[bits] = math.inf if found is None else found
        return known[bits]

    outwards = sorted(range(fewest, 9), key=lambda each: abs(each - begin))
    bits = next((each for each in outwards if math.isfinite(at(each))), None)
    if bits is None:
        return None
    for step in (1, -1):
        while at(bits + step) < at(bits):
            bits += step
    return {"error": at(bits), "bits": bits}


def spm(matrix: Matrix, size: float, steps: int) -> dict[str, Any] | None:
    """Return the least error of stages; `reason` instead where they would take too long to fit."""
    out, into = matrix.shape
    stages = {
        bits: largest(matrix.shape, size, integer(bits), lambda k: FitSettings(stages=k).spm(out, into))
        for bits in range(4, 9)
    }
    affordable = {bits for bits, k in stages.items() if 0 < k <= LONGEST and k * out * into <= MOST_WORK}
    if any(stages.values()) and not affordable:
        return {"reason": f"{min(k for k in stages.values() if k)} stages or more: too long to fit"}

    def error_in(bits: int) -> float | None:
        if bits not in affordable:
            return None
        settings = FitSettings(stages=stages[bits], steps=steps)
        covariance = None if matrix.metric is None else matrix.metric[None]
        (result,) = fit_matrices(matrix.weight[None], settings, covariances=covariance)
        return matrix.error(StoredOperator.of(result.operator, integer(bits), matrix.objective).decoded())

    found = best(error_in, min(affordable, default=4), 5)
    return None if found is None else {**found, "stages": stages[int(found["bits"])]}


def svd(matrix: Matrix, size: float) -> dict[str, Any] | None:
    """Return the least error of a truncated SVD."""
    out, into = matrix.shape

    def error_in(bits: int) -> float | None:
        rank = min(out, into, largest(matrix.shape, size, in_bits(bits), lambda k: LowRank(into, out, k)))
        return matrix.error(low_rank(matrix, rank, bits)) if rank else None

    return best(error_in, 1, 3)


def low_rank(matrix: Matrix, rank: int, bits: int) -> Operator:
    """Return the truncated SVD with its factors rounded one after the other.

    Its left factor is orthonormal, so that the metric of the inputs is that of the right one's rounding too.
    """
    form = LowRank(matrix.shape[1], matrix.shape[0], rank)
    (fitted,) = form.fit(matrix.objective, FitSettings(), None)
    left = StoredArray.of(in_bits(bits, "column"), fitted.arrays["left"]).decoded()
    right = torch.linalg.lstsq(left.double(), matrix.weight.double(), driver="gelsd").solution.float()
    return Operator(form, {"left": left, "right": StoredArray.of(in_bits(bits), right, matrix.metric).decoded()})


def monarch(matrix: Matrix, size: float, steps: int) -> dict[str, Any] | None:
    """Return the least error of a Monarch matrix."""
    out, into = matrix.shape

    def error_in(bits: int) -> float | None:
        codec, most = in_bits(bits), size * out * into / 8
        tiles = (Monarch(into, out, -(-into // t), -(-out // t)) for t in range(1, max(out, into) + 1))
        form = next((each for each in tiles if stored_bytes(each, codec) <= most), None)
        if form is None:
            return None
        (fitted,) = form.fit(matrix.objective, FitSettings(steps=steps), None)
        return matrix.error(StoredOperator.of(Operator(form, fitted.arrays), codec).decoded())

    return best(error_in, 1, 3)


def pruned(matrix: Matrix, size: float) -> dict[str, Any] | None:
    """Return the least error of the largest values, their positions entropy-coded."""
    weight = matrix.weight
    count = weight.numel()
    power = weight.square() if matrix.metric is None else weight.square() * matrix.metric.diagonal()
    order = power.flatten().argsort(descending=True, stable=True)

    def bits_of(kept: int, bits: int) -> float:
        return 8 * in_bits(bits, "matrix").bytes((1, kept)) + count * entropy(kept / count)

    def error_in(bits: int) -> float | None:
        # Beyond this share one more value takes less than none: the entropy falls by more than its bits.
        most = int(count / (1 + 2.0**-bits))
        kept = bisect.bisect_right(range(1, most + 1), size * count, key=lambda k: bits_of(k, bits))
        if bits_of(count, bits) <= size * count:
            kept = count
        if not kept:
            return None
        values = weight.flatten()[order[:kept]]
        stored = StoredArray.of(in_bits(bits, "matrix"), values[None]).decoded()[0]
        return matrix.error_of(torch.zeros(count).index_copy(0, order[:kept], stored).reshape(weight.shape))

    return best(error_in, 1, 3)


def entropy(share: float) -> float:
    """Return the bits that it takes on average to say whether something of this probability is the case."""
    return -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)


def dense(matrix: Matrix, bits: str) -> dict[str, Any]:
    """Return the error of all values in few bits, and what they take with their scales."""
    operator = Operator(Dense(matrix.shape[1], matrix.shape[0]), {"weight": matrix.weight})
    stored = StoredOperator.of(operator, parse_bits(bits), matrix.objective)
    return {"error": matrix.error(stored.decoded()), "size": 8 * stored.nbytes / matrix.weight.numel()}


def bound(matrix: Matrix, size: float) -> float:
    """Return the rate-distortion bound of rows that are Gaussian and independent.

    Weighted, a row is n independent numbers with the eigenvalues of the metric for variances, of which none is stored
    below the water level D: (1 / n) sum max(0, log2(e / D) / 2) bits, an error of sum min(e, D) / sum e (Cover and
    Thomas, Elements of Information Theory, theorem 10.3.3). With all of them equal: 2^-bits.
    """
    if matrix.metric is None:
        return 2.0**-size
    values = torch.linalg.eigvalsh(matrix.metric.double()).clamp(min=1e-300)
    low, high = values.min().log2() - 2 * size, values.max().log2()
    for _ in range(100):
        level = (low + high) / 2
        is_flooded = float(((values.log2() - level) / 2).clamp(min=0).mean()) < size
        low, high = (low, level) if is_flooded else (level, high)
    return math.sqrt(float(values.clamp(max=2.0 ** float(high)).sum() / values.sum()))


def rises(matrix: Matrix, steps: int) -> list[float]:
    found = []
    for stages in (10, 20):
        (result,) = fit_matrices(matrix.weight[None], FitSettings(stages=stages, steps=steps))
        stored = StoredOperator.of(result.operator, integer(8), matrix.objective)
        found.append(matrix.error(stored.decoded()) - result.error)
    return found


def measured(matrix: Matrix, sizes: Sequence[float], steps: int) -> dict[str, Any]:
    """Return what every form reaches on one matrix: size -> form -> error and bits."""
    by_size = {
        f"{size:g}": {
            "spm": spm(matrix, size, steps),
            "svd": svd(matrix, size),
            "monarch": monarch(matrix, size, steps),
            "pruned": pruned(matrix, size),
            "dense": dense(matrix, f"{size:g}") if f"{size:g}" in DENSE_BITS else None,
            "bound": {"error": bound(matrix, size)},
        }
        for size in sizes
    }
    return {"shape": list(matrix.shape), "sizes": by_size}


def medians(rows: Sequence[Any]) -> dict[str, Any]:
    """Return size -> form -> median of the errors and of how many matrices, and of SPM over SVD."""
    found: dict[str, Any] = {}
    for size in rows[0]["sizes"] if rows else ():
        at = [row["sizes"][size] for row in rows]
        errors = {form: [each[form]["error"] for each in at if "error" in (each[form] or {})] for form in FORMS}
        both = [each for each in at if all("error" in (each[form] or {}) for form in ("spm", "svd"))]
        errors["spm over svd"] = [each["spm"]["error"] / each["svd"]["error"] for each in both]
        found[size] = {form: [statistics.median(each), len(each)] for form, each in errors.items() if each}
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(DENSE_WEIGHTS))
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--most", type=int, default=6)
    asked = parser.parse_args(arguments)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    rows = {
        kind: [row for row in known["rows"].get(kind, ()) if row["model"] not in asked.models]
        for kind in ("plain", "weighted")
    }
    rise = known.get("largest_rise", 0.0)
    told = origin(__file__, arguments)
    for model in asked.models:
        data = calibration_data(model)
        metrics = {} if data is None else covariances(model, data)
        for name, weight in chosen(model, asked.most):
            plain = Matrix.of(weight, None)
            rise = max(rise, *rises(plain, asked.steps))
            tasks = {"plain": plain, **({"weighted": Matrix.of(weight, metrics[name])} if name in metrics else {})}
            for kind, matrix in tasks.items():
                row = {**told, "model": model, "name": name, **measured(matrix, asked.sizes, asked.steps)}
                rows[kind].append(row)
                print(kind, json.dumps(row), flush=True)
            found = {"largest_rise": rise, "median": {kind: medians(each) for kind, each in rows.items()}, "rows": rows}
            RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
