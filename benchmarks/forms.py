"""What a layer costs to run in each form, and what each misses of a weight at one size.

    python benchmarks/forms.py [time] [errors]

time: square layers with random numbers, 64 rows, one thread, ONNX Runtime, the fastest lowering of each; medians of
runs timed interleaved. `monarch, tiles of 32` is as large as two groups of five stages are fast.
errors: three weights of MiniLM, weighted by the inputs that 300 sentences give them, 600 steps; relative errors of the
outputs.
"""

from __future__ import annotations

import functools
import itertools
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from real_models import covariances, fetched
from recovery_data import write_texts
from torch import Tensor

from spm_compress import FitSettings, fit_matrices, open_source
from spm_compress.checkpoint import FittedLayer
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.precision import in_precision
from spm_compress.export.settings import Precision
from spm_compress.export.splicing.layer_model import dense_model, layer_model
from spm_compress.export.verification import session
from spm_compress.fitting.truncated_svd import svd_error
from spm_compress.forms import Form, Operator, StoredOperator, forms
from spm_compress.forms.form import numbers_of
from spm_compress.forms.lowering import lowerings
from spm_compress.forms.monarch import Monarch

ROWS = 64
REPEATS, SECONDS = 400, 2.0
WEIGHTS = (
    "encoder.layer.0.attention.self.query.weight",
    "encoder.layer.3.attention.self.value.weight",
    "encoder.layer.2.output.dense.weight",
)


def of(n: int) -> Iterator[tuple[str, Form]]:
    """The forms to compare: all of the numbers of ten stages, but for the last."""
    asked = FitSettings(stages=10)
    yield "spm, 10 stages", asked.spm(n, n)
    for kind in ("low_rank", "monarch"):
        (form,) = forms()[kind].candidates(replace(asked, forms=(kind,)), n, n)
        yield f"{kind} of as many numbers", form
    yield "monarch, tiles of 32", Monarch(n, n, n // 32, n // 32)


def layer(form: Form) -> FittedLayer:
    draw = torch.Generator().manual_seed(0)
    operator = Operator(form, {name: torch.randn(shape, generator=draw) for name, shape in form.shapes.items()})
    stored = StoredOperator.of(operator)
    return FittedLayer(("layer",), operator.shape, "F32", "", 0.0, 0.0, 0, 0, "random", stored)


def time(widths: tuple[int, ...] = (384, 768, 1536, 4096)) -> None:
    print("| n | form | numbers | microseconds | over dense float32 | over dense int8 |")
    print("|---|---|---|---|---|---|")
    for n in widths:
        named = {name: layer(form) for name, form in of(n)}
        dense = dense_model(next(iter(named.values())))
        models = {"dense float32/": dense, "dense int8/": in_precision(dense, (), Precision.INT8)[0]}
        for (name, each), lowering in itertools.product(named.items(), lowerings()):
            models[f"{name}/{lowering.name}"] = layer_model(each, lowering)
        x = np.random.default_rng(0).standard_normal((ROWS, n), np.float32)
        runtimes = {
            key: session(ir.serde.serialize_model(model).SerializeToString(), 1) for key, model in models.items()
        }
        calls = {key: functools.partial(runtime.run, None, {"x": x}) for key, runtime in runtimes.items()}
        timings = {key: timing.median for key, timing in interleaved(calls, repeats=REPEATS, seconds=SECONDS).items()}
        float32, int8 = timings["dense float32/"], timings["dense int8/"]
        print(f"| {n} | dense float32 | {n * n:,} | {float32 * 1e6:.0f} | 1.0x | {int8 / float32:.1f}x |")
        for name, each in named.items():
            best = min(seconds for key, seconds in timings.items() if key.startswith(f"{name}/"))
            row = [n, name, f"{numbers_of(each.form):,}", f"{best * 1e6:.0f}"]
            print("|", " | ".join(map(str, row)), f"| {float32 / best:.1f}x | {int8 / best:.1f}x |", flush=True)


def errors() -> None:
    source = open_source(fetched("minilm"))
    with tempfile.TemporaryDirectory() as folder:
        texts, _ = write_texts(Path(folder) / "texts.txt")
        few = Path(folder) / "few.txt"
        few.write_text("\n".join(texts.read_text(encoding="utf-8").splitlines()[:300]) + "\n", encoding="utf-8")
        known = covariances("minilm", few)
    print("| weight | numbers of | spm | monarch: projection | monarch | truncated SVD |")
    print("|---|---|---|---|---|---|")
    for name, stages in itertools.product(WEIGHTS, (10, 40)):
        weight, covariance = source.read(name), known[name]

        def reached(settings: FitSettings, weight: Tensor = weight, covariance: Tensor = covariance) -> float:
            (result,) = fit_matrices(weight[None], settings, covariances=covariance[None])
            return result.output_error or 0.0

        asked = FitSettings(stages=stages)
        alone = replace(asked, forms=("monarch",))
        found = [reached(each) for each in (asked, replace(alone, steps=0), alone)]
        found.append(svd_error(weight, asked.numbers(*weight.shape), covariance))
        print(f"| `{name}` | {stages} stages |", " | ".join(f"{error:.3f}" for error in found), "|", flush=True)


if __name__ == "__main__":
    ways = {"time": time, "errors": errors}
    for way in sys.argv[1:] or ways:
        ways[way]()
