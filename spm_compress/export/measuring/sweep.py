"""From which width and batch on is an SPM layer faster than the dense one on this machine?"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.codecs import FLOAT32
from spm_compress.errors import UsageError
from spm_compress.export.choice import processor
from spm_compress.export.measuring.timing import Timing, interleaved
from spm_compress.export.precision import in_precision
from spm_compress.export.saving import LIMIT
from spm_compress.export.settings import Precision
from spm_compress.export.splicing.layer_model import dense_model, layer_model
from spm_compress.export.verification import check_provider, session
from spm_compress.forms.form import Operator
from spm_compress.forms.lowering import lowerings
from spm_compress.forms.spm.form import build_spm
from spm_compress.forms.stored import StoredOperator

__all__ = ["SweepCell", "SweepSettings", "machine", "sweep"]

_FLOAT32, _INT8 = "float32", "int8"


@dataclass(frozen=True)
class SweepSettings:
    """Square layers features x features of so many stages, run on `batches` rows.

    threads: 0 for all cores; repeats: timed runs of each way in a cell; seconds: a cell stops repeating after this.
    """

    features: tuple[int, ...] = (256, 384, 768, 1536, 4096)
    batches: tuple[int, ...] = (1, 16, 64, 256, 1024)
    stages: int = 10
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    repeats: int = 200
    seconds: float = 2.0
    seed: int = 0


@dataclass(frozen=True)
class SweepCell:
    """One layer on one batch, all ways to run it timed interleaved.

    float32: the dense product; int8: the same by ONNX Runtime's dynamic quantization; lowerings: name -> the SPM.
    """

    features: int
    batch: int
    float32: Timing
    int8: Timing
    lowerings: Mapping[str, Timing]


def sweep(settings: SweepSettings | None = None) -> Iterator[SweepCell]:
    """Time random layers of every width at every batch; yields each cell when it is done.

    Raises UsageError, before anything is timed, for a provider that is not there or a width whose dense weight
    does not fit into one ONNX file.
    """
    settings = settings or SweepSettings()
    check_provider(settings.provider)
    for features in settings.features:
        if 4 * features**2 >= LIMIT:
            raise UsageError(f"`features` {features}: the dense layer would have 2 GB or more; choose smaller ones")
    return _cells(settings)


def machine() -> tuple[str, str]:
    """Return the processor's name and ONNX Runtime's version, without which a sweep's figures mean nothing."""
    return processor(), onnxruntime.__version__


def _cells(settings: SweepSettings) -> Iterator[SweepCell]:
    for features in settings.features:
        runtimes = {name: _session(model, settings) for name, model in _models(features, settings)}
        for batch in settings.batches:
            x = np.random.default_rng(settings.seed).standard_normal((batch, features), np.float32)
            calls = {name: functools.partial(runtime.run, None, {"x": x}) for name, runtime in runtimes.items()}
            timings = interleaved(calls, repeats=settings.repeats, seconds=settings.seconds)
            yield SweepCell(features, batch, timings.pop(_FLOAT32), timings.pop(_INT8), timings)


def _models(features: int, settings: SweepSettings) -> Iterator[tuple[str, ir.Model]]:
    layer = _layer(features, settings)
    dense = dense_model(layer)
    yield _FLOAT32, dense
    yield _INT8, in_precision(dense, (), Precision.INT8)[0]
    for lowering in lowerings():
        yield lowering.name, layer_model(layer, lowering)


def _session(model: ir.Model, settings: SweepSettings) -> onnxruntime.InferenceSession:
    as_bytes = ir.serde.serialize_model(model).SerializeToString()
    return session(as_bytes, settings.threads, settings.provider)


def _layer(features: int, settings: SweepSettings) -> FittedLayer:
    """Return a layer with random numbers: what it computes does not change how long it takes."""
    form = build_spm(features, features, stages=settings.stages, seed=settings.seed).stored(FLOAT32)
    draw = torch.Generator().manual_seed(settings.seed)
    arrays = {name: torch.randn(shape, generator=draw) for name, shape in form.shapes.items()}
    return FittedLayer(
        names=("layer",),
        shape=(features, features),
        dtype="F32",
        sha256="",
        error=0.0,
        svd_error=0.0,
        steps=0,
        restarts=0,
        start="random",
        stored=StoredOperator.of(Operator(form, arrays)),
    )
