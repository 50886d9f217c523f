"""How near an SPM comes to trained weights, beside what else could be stored in the same bytes.

    python benchmarks/fit_quality.py [MODEL ...] [--sizes 0.03 0.06 0.12] [--effort fast|balanced|best] [--steps N]
                                     [--every K] [--weighted FILE] [--json FILE]

MODEL: of examples/fetch_model.py; all unless given. Relative Frobenius errors; everything is stored in float32 and
counted, index tables and scales too. The methods:

    SPM        as many stages as the size holds
    SVD        truncated, at exactly the bytes of the SPM (between two ranks the squared error is interpolated)
    pruned     the largest values, each charged 4 bytes and a 16-bit index, at the bytes of the SPM
    Monarch    nearest Monarch matrix, of the size that is nearest to the SPM's
    int8 int4  rounded to nearest with one scale a row: 25 % and 12.5 % of the bytes, whatever the size asked for
    butterfly  pyfaust's closed form, at its one size (2 n log2 n numbers) and beside an SPM of that size, on the
               largest leading block of each matrix that is 2^k wide; left out where pyfaust is not installed

--weighted FILE: calibration data that the models run on (.txt for minilm: examples/calibration_text.py); errors are
then ||(W - S) C|| / ||W C|| with C C^T the covariance of the inputs. SPM and SVD minimize it; the other methods have no
closed form for it and are only measured by it.

--every K takes the first of each shape and every K-th after it. What was measured is kept in build/fit_quality, matrix
by matrix, so that a run which was interrupted goes on; after a change of the code that fits it begins anew.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from closed_butterfly import butterfly, is_installed
from real_models import DENSE_WEIGHTS, ROOT, covariances, dense_weights
from torch import Tensor

from spm_compress import FitSettings, Monarch, Operator, fit_matrices
from spm_compress.fitting import svd_error
from spm_compress.fitting.objective import Objective, output_error
from spm_compress.forms import EFFORTS, StoredOperator
from spm_compress.forms.form import numbers_of, stored_bytes

FLOAT, INDEX = 4, 2  # bytes
SIZES = (0.03, 0.06, 0.12)
KEPT = ROOT / "build" / "fit_quality"
# What a fit depends on besides the weight and the settings.
CODE = ("fitting", "forms")
# Values that are fitted in one batch.
BATCH_VALUES = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """A trained weight (m, n), and the covariance (n, n) of its inputs where errors are weighted by it."""

    name: str
    weight: Tensor
    covariance: Tensor | None = None

    def error(self, approximation: Tensor) -> float:
        """Return ||(W - S) C|| / ||W C||; C is the identity if there is no covariance."""
        if self.covariance is not None:
            return output_error(self.weight, approximation, self.covariance)
        weight = self.weight.double()
        return float((weight - approximation.double()).norm() / weight.norm())


@dataclass(frozen=True)
class Fitted:
    """What an SPM came to: everything stored, in bytes, and the relative error."""

    stored: int
    error: float


@dataclass(frozen=True)
class Row:
    """One matrix at one size, shares of the dense bytes: the errors of all methods."""

    model: str
    name: str
    shape: str
    size: float
    spm_size: float
    monarch_size: float
    spm: float
    svd: float
    pruned: float
    monarch: float
    int8: float
    int4: float

    @property
    def ratio(self) -> float:
        """Error of the SPM over that of the SVD of its size."""
        return self.spm / self.svd if self.svd else math.inf


@dataclass(frozen=True)
class ButterflyRow:
    """The leading block of one matrix, n = 2^k: butterfly and SPM in 2 n log2 n numbers."""

    model: str
    name: str
    n: int
    size: float
    butterfly: float
    spm: float
    svd: float


R = TypeVar("R", Row, ButterflyRow)


def spm(matrices: Sequence[Matrix], settings: FitSettings, size: float) -> list[Fitted] | None:
    """Fit matrices of one shape in at most `size` of their bytes; None where one stage is too many."""
    m, n = matrices[0].weight.shape

    def fits(stages: int) -> bool:
        return stored_bytes(FitSettings(stages=stages).reference(m, n)) <= size * FLOAT * m * n

    stages = sum(1 for _ in itertools.takewhile(fits, itertools.count(1)))
    if not stages:
        return None
    weights = torch.stack([matrix.weight for matrix in matrices])
    known = [matrix.covariance for matrix in matrices if matrix.covariance is not None]
    covariances = torch.stack(known) if known else None
    results = fit_matrices(weights, replace(settings, stages=stages), covariances=covariances)
    return [
        Fitted(StoredOperator.of(result.operator).nbytes, matrix.error(result.operator.to(torch.float64).to_dense()))
        for matrix, result in zip(matrices, results, strict=True)
    ]


def svd(matrix: Matrix, stored: int) -> float:
    return svd_error(matrix.weight, stored // FLOAT, matrix.covariance)


def pruned(weight: Tensor, stored: int) -> Tensor:
    kept = weight.abs().flatten().topk(min(weight.numel(), stored // (FLOAT + INDEX))).indices
    return torch.zeros_like(weight).flatten().index_copy(0, kept, weight.flatten()[kept]).reshape(weight.shape)


def rounded(weight: Tensor, bits: int) -> Tensor:
    levels = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny) / levels
    nearest: Tensor = (weight / scale).round() * scale
    return nearest


class Kept:
    """Rows of this run and of earlier ones with the same settings, data and code, a file each."""

    def __init__(self, settings: FitSettings, data: Path | None) -> None:
        files = sorted(path for room in CODE for path in (ROOT / "spm_compress" / room).rglob("*.py"))
        digest = hashlib.sha256(repr(settings).encode())
        for path in (*files, data):
            digest.update(path.read_bytes() if path else b"")
        self._folder = KEPT / digest.hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)

    def rows(
        self, what: str, row: type[R], group: Sequence[Matrix], measure: Callable[[list[Matrix]], list[R]]
    ) -> list[R]:
        """Return the row of each matrix, measured where there is none; `what` tells rows of one matrix apart."""
        files = {matrix.name: self._folder / f"{what}-{matrix.name}.json" for matrix in group}
        missing = [matrix for matrix in group if not files[matrix.name].exists()]
        for found in measure(missing) if missing else ():
            written = files[found.name].with_suffix(".part")
            written.write_text(json.dumps(asdict(found)))
            written.replace(files[found.name])
        return [row(**json.loads(path.read_text())) for path in files.values() if path.exists()]


def batches(matrices: Sequence[Matrix], every: int) -> Iterator[list[Matrix]]:
    """Yield matrices of one shape, as many as are fitted together; of each shape every so many."""
    by_shape = defaultdict(list)
    for matrix in matrices:
        by_shape[matrix.weight.shape].append(matrix)
    for shape, alike in by_shape.items():
        count = max(1, BATCH_VALUES // shape.numel())
        chosen = alike[::every]
        yield from (chosen[i : i + count] for i in range(0, len(chosen), count))


def compare(model: str, matrices: Sequence[Matrix], settings: FitSettings, size: float) -> list[Row]:
    """Measure every method on matrices of one shape."""
    fits = spm(matrices, settings, size)
    return [compare_one(model, each, size, done) for each, done in zip(matrices, fits, strict=True)] if fits else []


def compare_one(model: str, matrix: Matrix, size: float, fitted: Fitted) -> Row:
    weight = matrix.weight
    m, n = weight.shape
    form = nearest_monarch(m, n, fitted.stored // FLOAT)
    return Row(
        model=model,
        name=matrix.name,
        shape=f"{m}x{n}",
        size=size,
        spm_size=fitted.stored / (FLOAT * m * n),
        monarch_size=numbers_of(form) / (m * n),
        spm=fitted.error,
        svd=svd(matrix, fitted.stored),
        pruned=matrix.error(pruned(weight, fitted.stored)),
        monarch=matrix.error(projected(weight, form)),
        int8=matrix.error(rounded(weight, 8)),
        int4=matrix.error(rounded(weight, 4)),
    )


def nearest_monarch(m: int, n: int, numbers: int) -> Monarch:
    """Return the form whose blocks divide both widths and whose size is nearest by ratio; of equals the squarest."""
    forms = [Monarch(n, m, right, left) for right in divisors(n) for left in divisors(m)]

    def distance(form: Monarch) -> tuple[float, float]:
        p, q = form.tile
        return abs(math.log(numbers_of(form) / numbers)), abs(math.log(p / q))

    return min(forms, key=distance)


def divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]


def projected(weight: Tensor, form: Monarch) -> Tensor:
    """Return the Monarch matrix (m, n) that is nearest to weight (m, n) in the Frobenius norm."""
    (fitted,) = form.fit(Objective(weight[None]), FitSettings(), None)
    return Operator(form, fitted.arrays).to_dense()


def compare_butterfly(model: str, matrices: Sequence[Matrix], settings: FitSettings) -> list[ButterflyRow]:
    """Measure the butterfly on the leading power-of-two blocks of matrices of one shape."""
    n = 1 << (min(matrices[0].weight.shape).bit_length() - 1)
    blocks = [
        Matrix(
            matrix.name,
            matrix.weight[:n, :n].contiguous(),
            None if matrix.covariance is None else matrix.covariance[:n, :n].contiguous(),
        )
        for matrix in matrices
    ]
    size = 2 * math.log2(n) / n
    return [
        ButterflyRow(
            model, block.name, n, size, block.error(butterfly(block.weight)), fit.error, svd(block, fit.stored)
        )
        for block, fit in zip(blocks, spm(blocks, settings, size) or (), strict=True)
    ]


def show(rows: Sequence[Row], skipped: int) -> None:
    """Print one line of the table: ratios of SPM to SVD, then medians of the errors and of the sizes."""
    if not rows:
        return
    ratios = [row.ratio for row in rows]

    def error(method: str) -> str:
        return f"{statistics.median(getattr(row, method) for row in rows):.3f}"

    def size(method: str) -> str:
        return f"({statistics.median(getattr(row, method) for row in rows):.1%})"

    cells = [
        rows[0].model,
        f"{rows[0].size:.0%}",
        f"{len(rows)}" + (f" ({skipped} too small)" if skipped else ""),
        f"{statistics.median(ratios):.3f}",
        f"{max(ratios):.3f}",
        f"{sum(ratio < 1 for ratio in ratios) / len(rows):.0%}",
        f"{error('spm')} {size('spm_size')}",
        error("svd"),
        error("pruned"),
        f"{error('monarch')} {size('monarch_size')}",
        error("int8"),
        error("int4"),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def show_butterfly(rows: Sequence[ButterflyRow]) -> None:
    print("\n| model | n | matrices | size | butterfly | SPM | SVD | SPM lower than butterfly |")
    print("|---|---|---|---|---|---|---|---|")
    for (model, n), group in itertools.groupby(rows, key=lambda row: (row.model, row.n)):
        each = list(group)
        errors = [statistics.median(getattr(row, method) for row in each) for method in ("butterfly", "spm", "svd")]
        lower = sum(row.spm < row.butterfly for row in each) / len(each)
        shown = " | ".join(f"{error:.3f}" for error in errors)
        print(f"| {model} | {n} | {len(each)} | {each[0].size:.1%} | {shown} | {lower:.0%} |")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(DENSE_WEIGHTS))
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES, help="shares of the dense bytes")
    parser.add_argument("--effort", choices=EFFORTS, default="balanced", help="as of `fit`")
    parser.add_argument("--steps", type=int, help="most gradient steps, instead of the effort's")
    parser.add_argument("--every", type=int, default=1, metavar="K", help="only every K-th matrix of a shape")
    parser.add_argument("--weighted", type=Path, help="calibration data, to weight errors by the inputs")
    parser.add_argument("--json", type=Path, help="write all rows here")
    given = parser.parse_args()
    if unknown := set(given.models) - set(DENSE_WEIGHTS):
        parser.error(f"no such model: {', '.join(sorted(unknown))}; known are {', '.join(DENSE_WEIGHTS)}")
    return given


def main(given: argparse.Namespace) -> None:
    chosen: dict[str, Any] = {**EFFORTS[given.effort], **({"steps": given.steps} if given.steps else {})}
    settings = FitSettings(**chosen)
    kept = Kept(settings, given.weighted)
    grouped = {}
    for model in given.models or DENSE_WEIGHTS:
        known = covariances(model, given.weighted) if given.weighted else {}
        matrices = [Matrix(name, weight, known.get(name)) for name, weight in dense_weights(model).items()]
        if given.weighted:
            matrices = [matrix for matrix in matrices if matrix.covariance is not None]
        grouped[model] = list(batches(matrices, given.every))
    print(
        "| model | size | matrices | SPM/SVD median | worst | SPM lower | SPM | SVD | pruned | Monarch | int8 | int4 |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    rows, blocks = [], []
    for (model, groups), size in itertools.product(grouped.items(), given.sizes):
        found = []
        for group in groups:
            measure = partial(compare, model, settings=settings, size=size)
            found += kept.rows(f"{model}-{size}", Row, group, measure)
        show(found, sum(map(len, groups)) - len(found))
        rows += found
    if is_installed():
        for model, groups in grouped.items():
            for group in groups:
                one = partial(compare_butterfly, model, settings=settings)
                blocks += kept.rows(f"{model}-butterfly", ButterflyRow, group, one)
        show_butterfly(blocks)
    else:
        print("\nbutterfly: left out, pyfaust is not installed (pip install pyfaust)")
    if given.json:
        written = {"rows": [asdict(row) for row in rows], "butterfly": [asdict(row) for row in blocks]}
        given.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main(arguments())
