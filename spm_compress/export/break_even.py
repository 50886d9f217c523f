"""From which width and batch on is a layer of stages faster than the dense one, on this machine?"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.export.lowering import Dense, lowerings
from spm_compress.export.splice import dense_model, layer_model
from spm_compress.export.timing import interleaved
from spm_compress.export.verification import session
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, build_structure

__all__ = ["DENSE", "INT8", "BreakEven", "Cell", "sweep"]

DENSE, INT8 = "dense float32", "dense int8"


@dataclass(frozen=True)
class Cell:
    """Median seconds of one layer, features x features, at one batch, by the way it runs."""

    features: int
    batch: int
    seconds: Mapping[str, float]

    def speedup(self, name: str) -> float:
        """Return how many times as fast as dense float32 a way is."""
        return self.seconds[DENSE] / self.seconds[name]

    @property
    def best(self) -> str:
        """Name of the fastest lowering of the SPM."""
        return min((name for name in self.seconds if name not in (DENSE, INT8)), key=self.seconds.__getitem__)


@dataclass(frozen=True)
class BreakEven:
    """The map: a cell for every width and batch."""

    stages: int
    threads: int
    provider: str
    cells: tuple[Cell, ...]


def sweep(
    *,
    features: Sequence[int],
    batches: Sequence[int],
    stages: int = 10,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    repeats: int = 30,
    seconds: float = 2.0,
    told: Callable[[str], None] = lambda text: None,
) -> BreakEven:
    """Time square layers of random numbers, without bias, in every lowering, in turns with dense ones.

    Times do not depend on the numbers. The dense lowering is left out: it runs as dense float32 does.
    seconds: most for one cell, once three turns are done.
    """
    cells = []
    for width in features:
        sessions = _sessions(width, stages, threads, provider)
        for batch in batches:
            told(f"{width} features, batch {batch}")
            x = np.random.default_rng(0).standard_normal((batch, width)).astype(np.float32)
            calls = {name: (lambda runtime=runtime, x=x: runtime.run(None, {"x": x})) for name, runtime in sessions}
            times = interleaved(calls, repeats=repeats, seconds=seconds)
            cells.append(Cell(width, batch, {name: timing.median for name, timing in times.items()}))
    return BreakEven(stages, threads, provider, tuple(cells))


def _sessions(width: int, stages: int, threads: int, provider: str) -> list[tuple[str, onnxruntime.InferenceSession]]:
    generator = torch.Generator().manual_seed(0)
    structure = build_structure(width, width, stages=stages, mixer=Mixer.CANONICAL)
    # Small cross entries: products of stages stay in range, which denormal numbers would slow down.
    numbers = [
        {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in named.items()}
        for named in structure.shapes()
    ]
    layer = FittedLayer(("layer",), (width, width), "F32", "", 0.0, 0.0, 0, 0, "", SPM(structure, numbers))
    dense = ir.serde.serialize_model(dense_model(layer))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(dense, path)
        finally:
            logging.disable(previous)
        int8 = session(path, threads, provider)
    ways = [(DENSE, session(dense.SerializeToString(), threads, provider)), (INT8, int8)]
    for lowering in lowerings():
        if not isinstance(lowering, Dense):
            model = ir.serde.serialize_model(layer_model(layer, lowering)).SerializeToString()
            ways.append((lowering.name, session(model, threads, provider)))
    return ways
