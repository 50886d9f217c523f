"""Error against bits a weight on trained weights, every form in its best bits; and what 8 bits of an angle cost.

    python benchmarks/bits_quality.py [MODEL ...] [--sizes 0.15 0.3 0.6 1] [--steps N] [--most N]

MODEL: of examples/fetch_model.py; all unless given. --most: so many matrices of each model, spread over its shapes.
Everything that is stored counts, scales and units too. Of each matrix and size:

    spm          as many stages as the size holds, in the bits of 4 to 8 that end lowest (angles, rounded in turn)
    svd          truncated, its factors in 2 to 8 bits, a scale a rank
    monarch      the nearest one, its blocks in 2 to 8 bits
    dense        1, 1.6, 2, 3 and 4 bits, a scale a row: at their own sizes
    bound        2^-bits: what no code can be below for Gaussian numbers

`rise`: by how much the error of 10 and 20 stages grows when their float32 numbers become angles of 8 bits. Results are
kept in benchmarks/results/bits_quality.json.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from real_models import DENSE_WEIGHTS, ROOT, dense_weights
from torch import Tensor

from spm_compress import Dense, FitSettings, LowRank, Monarch, Operator, fit_matrices
from spm_compress.codecs import Codec, integer, parse_bits
from spm_compress.export.choice import processor
from spm_compress.fitting.objective import Objective
from spm_compress.forms import Form, StoredOperator
from spm_compress.forms.form import relative_error, stored_bytes

RESULTS = ROOT / "benchmarks" / "results" / "bits_quality.json"
DENSE_BITS = ("1", "1.6", "2", "3", "4")


def chosen(model: str, most: int) -> Iterator[tuple[str, Tensor]]:
    """Yield weights of a model, as many of each shape as of any other."""
    by_shape: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
    for name, weight in dense_weights(model).items():
        by_shape.setdefault(tuple(weight.shape), []).append((name, weight.float()))
    each = max(1, most // len(by_shape))
    for alike in list(by_shape.values())[:most]:
        yield from alike[:: max(1, len(alike) // each)][:each]


def largest(shape: tuple[int, int], size: float, codec: Codec, make: Any) -> Form | None:
    """Return make(k) of the largest k within `size` bits a weight; None if the smallest is larger."""
    most = size * shape[0] * shape[1] / 8
    found, k = None, 1
    while stored_bytes(form := make(k), codec) <= most:
        found, k = form, k + 1
    return found


def spm(weight: Tensor, size: float, steps: int) -> float | None:
    """Return the least error of stages in 4 to 8 bits."""
    shape = (weight.shape[0], weight.shape[1])
    errors = []
    for stages, codecs in by_stages(shape, size).items():
        (result,) = fit_matrices(weight[None], FitSettings(stages=stages, steps=steps))
        target = Objective(weight[None])
        errors += [relative_error(weight, StoredOperator.of(result.operator, c, target).decoded()) for c in codecs]
    return min(errors, default=None)


def by_stages(shape: tuple[int, int], size: float) -> dict[int, list[Codec]]:
    """Return how many stages each number of bits allows: stages -> codecs."""
    found: dict[int, list[Codec]] = {}
    for bits in range(4, 9):
        form = largest(shape, size, integer(bits), lambda k: FitSettings(stages=k).spm(*shape))
        if form is not None:
            found.setdefault(int(form.summary["stages"]), []).append(integer(bits))
    return found


def svd(weight: Tensor, factors: tuple[Tensor, Tensor, Tensor], size: float) -> float | None:
    """Return the least error of a truncated SVD in 2 to 8 bits."""
    out, into = weight.shape
    u, values, vt = factors
    errors = []
    for bits in range(2, 9):
        form = largest((out, into), size, integer(bits), lambda k: LowRank(into, out, k))
        if isinstance(form, LowRank) and form.rank <= len(values):
            r, root = form.rank, values[: form.rank].sqrt()
            operator = Operator(form, {"left": u[:, :r] * root, "right": root[:, None] * vt[:r]})
            errors.append(relative_error(weight, StoredOperator.of(operator, integer(bits)).decoded()))
    return min(errors, default=None)


def monarch(weight: Tensor, size: float) -> float | None:
    """Return the least error of a Monarch matrix in 2 to 8 bits."""
    out, into = weight.shape
    errors = []
    for bits in range(2, 9):
        codec, most = integer(bits), size * out * into / 8
        tiles = (Monarch(into, out, -(-into // t), -(-out // t)) for t in range(1, max(out, into) + 1))
        form = next((each for each in tiles if stored_bytes(each, codec) <= most), None)
        if form is not None:
            (fitted,) = form.fit(Objective(weight[None]), FitSettings(), None)
            found = StoredOperator.of(Operator(form, fitted.arrays), codec).decoded()
            errors.append(relative_error(weight, found))
    return min(errors, default=None)


def measured(weight: Tensor, sizes: Sequence[float], steps: int) -> dict[str, Any]:
    """Return what every form reaches on one matrix."""
    out, into = weight.shape
    factors = torch.linalg.svd(weight, full_matrices=False)
    rises = []
    for stages in (10, 20):
        (result,) = fit_matrices(weight[None], FitSettings(stages=stages, steps=steps))
        stored = StoredOperator.of(result.operator, integer(8), Objective(weight[None]))
        rises.append(relative_error(weight, stored.decoded()) - result.error)
    dense = {}
    for bits in DENSE_BITS:
        stored = StoredOperator.of(Operator(Dense(into, out), {"weight": weight}), parse_bits(bits))
        dense[bits] = [8 * stored.nbytes / weight.numel(), relative_error(weight, stored.decoded())]
    by_size = {
        str(size): {
            "spm": spm(weight, size, steps),
            "svd": svd(weight, factors, size),
            "monarch": monarch(weight, size),
        }
        for size in sizes
    }
    return {"shape": [out, into], "rise": rises, "dense": dense, "sizes": by_size}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(DENSE_WEIGHTS))
    parser.add_argument("--sizes", type=float, nargs="+", default=[0.15, 0.3, 0.6, 1.0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--most", type=int, default=6)
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for model in asked.models:
        for name, weight in chosen(model, asked.most):
            rows.append({"model": model, "name": name, **measured(weight, asked.sizes, asked.steps)})
            print(json.dumps(rows[-1]), flush=True)
    found = {
        "command": f"python benchmarks/bits_quality.py {' '.join(arguments)}".strip(),
        "date": datetime.date.today().isoformat(),
        "machine": processor(),
        "largest_rise": max(rise for row in rows for rise in row["rise"]),
        "median": {
            str(size): {
                form: statistics.median(values)
                for form in ("spm", "svd", "monarch")
                if (values := [row["sizes"][str(size)][form] for row in rows if row["sizes"][str(size)][form]])
            }
            for size in asked.sizes
        },
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
