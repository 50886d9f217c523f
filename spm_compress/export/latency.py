"""What a model costs to run: time by batch, sequence and threads, memory, size, and time to load."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.errors import VerificationError
from spm_compress.export.saving import size_of
from spm_compress.export.timing import Timing, interleaved
from spm_compress.export.verification import random_inputs, run, session

__all__ = ["Cell", "Cost", "Latency", "measure"]


@dataclass(frozen=True)
class Cost:
    """What a model costs besides time: bytes on disk, median seconds to load, peak bytes of memory.

    memory: what loading and one run at the largest size add to a fresh process; None where it cannot be told.
    """

    path: Path
    bytes: int
    load: float
    memory: int | None


@dataclass(frozen=True)
class Cell:
    """Times at one size: model -> seconds a run. sequence: None where the model has no second dynamic axis."""

    batch: int
    sequence: int | None
    threads: int
    times: Mapping[Path, Timing]


@dataclass(frozen=True)
class Latency:
    """All that was measured of one or two models in one run, on one provider."""

    provider: str
    costs: tuple[Cost, ...]
    cells: tuple[Cell, ...]


def measure(
    paths: Sequence[Path],
    *,
    batches: Sequence[int],
    sequences: Sequence[int],
    threads: Sequence[int],
    provider: str = "CPUExecutionProvider",
    repeats: int = 50,
    seconds: float = 5.0,
    told: Callable[[str], None] = lambda text: None,
) -> Latency:
    """Measure models side by side, on random inputs, in turns.

    seconds: most for one size, once three turns are done. Raises SourceError for a file that is no ONNX model,
    VerificationError for one that does not run, or whose inputs are not those of the first.
    """
    graphs = {path: open_graph(path) for path in paths}
    first = graphs[paths[0]]
    inputs_of = {path: [value.name for value in graph.graph.inputs] for path, graph in graphs.items()}
    for path, names in inputs_of.items():
        if names != inputs_of[paths[0]]:
            raise VerificationError(
                f"{path}: takes the inputs {names}, {paths[0]} takes {inputs_of[paths[0]]}; compare like with like"
            )
    lengths: Sequence[int | None] = sequences if _has_sequence(first) else [None]
    told("load time and memory")
    costs = tuple(_cost(path, first, max(batches), max(sequences), provider) for path in paths)
    cells = []
    for count in threads:
        sessions = {path: session(path, count, provider) for path in paths}
        for batch in batches:
            for length in lengths:
                told(f"batch {batch}" + (f", sequence {length}" if length else "") + f", {count} threads")
                inputs = random_inputs(first, batch, length or 1, seed=0)
                calls = {str(path): functools.partial(run, runtime, inputs) for path, runtime in sessions.items()}
                times = interleaved(calls, repeats=repeats, seconds=seconds)
                cells.append(Cell(batch, length, count, {path: times[str(path)] for path in paths}))
    return Latency(provider, costs, tuple(cells))


def _has_sequence(model: ir.Model) -> bool:
    return any(
        not isinstance(dim, int) or dim < 1
        for value in model.graph.inputs
        if value.shape is not None
        for dim in list(value.shape)[1:]
    )


def _cost(path: Path, inputs_of: ir.Model, batch: int, sequence: int, provider: str) -> Cost:
    loads = []
    for _ in range(3):
        start = time.perf_counter()
        session(path, 1, provider)
        loads.append(time.perf_counter() - start)
    return Cost(path, size_of(path), float(np.median(loads)), _memory(path, inputs_of, batch, sequence, provider))


def _memory(path: Path, inputs_of: ir.Model, batch: int, sequence: int, provider: str) -> int | None:
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder) / "inputs.npz"
        np.savez(inputs, **random_inputs(inputs_of, batch, sequence, seed=0))  # type: ignore[arg-type]
        script = str(Path(__file__).with_name("peak_memory.py"))
        done = subprocess.run(
            [sys.executable, script, str(path), str(inputs), provider, "1"], capture_output=True, text=True, check=False
        )
    return int(done.stdout) if done.returncode == 0 else None
