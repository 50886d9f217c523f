"""Does the ONNX file compute what the torch operator computes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

from spm_compress.errors import UsageError, VerificationError, first_line, near_misses

__all__ = [
    "SIZES",
    "TOLERANCE",
    "Agreement",
    "check_file",
    "check_provider",
    "compare",
    "random_inputs",
    "require",
    "run",
    "runnable_size",
    "session",
]

# Float32 sums in another order differ by about 1e-7 a layer; a wrong index or number by far more than this.
TOLERANCE = 1e-4
# Lengths and image sizes to try for the dynamic axes of a graph.
SIZES = (16, 32, 48, 64, 224, 320)
_RUNTIME_ERRORS = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """Largest relative error over the outputs at one batch size: ||onnx - torch|| / ||torch||."""

    batch: int
    error: float


def check_file(path: Path) -> None:
    """Run onnx.checker on a file. Raises VerificationError with its finding."""
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VerificationError(f"{path.name}: onnx.checker refuses the exported file ({first_line(error)})") from error


def check_provider(provider: str) -> None:
    """Raise UsageError for an execution provider that this ONNX Runtime does not have."""
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise UsageError(
            f"--provider {provider}: this onnxruntime has {', '.join(available)}{near_misses(provider, available)}"
        )


def session(
    model: Path | bytes,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    optimized: Path | None = None,
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
) -> onnxruntime.InferenceSession:
    """Open a session; threads: 0 for all cores; optimized: where to write the graph that is really run.

    Raises VerificationError if ONNX Runtime refuses the model, or goes on without the provider.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = level
    options.log_severity_level = 4  # what fails is said once, by this program
    # Idle threads spin on for a while: of two sessions timed in turns, each ran beside the other's (2 threads on 2
    # cores, six products of 768x768 at batch 8: 640 us in turns, 340 us alone; with this, 340 us in both).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        opened = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=[provider]
        )
    except _RUNTIME_ERRORS as error:
        raise VerificationError(f"ONNX Runtime cannot load the model ({first_line(error)})") from error
    if provider not in opened.get_providers():
        raise VerificationError(f"{provider} did not start here, ONNX Runtime went on without it; check its libraries")
    return opened


def random_inputs(model: ir.Model, batch: int, sequence: int, seed: int) -> dict[str, np.ndarray]:
    """Draw inputs for a graph: its first dynamic axis is `batch`, other dynamic axes are `sequence`.

    Floats are normal; integers are 1 for masks, and otherwise below the size of the table that they look up.
    """
    generator = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        dims = list(value.shape) if value.shape is not None else []
        # Some exporters write a dynamic axis as -1 or 0.
        fixed = [dim if isinstance(dim, int) and dim > 0 else None for dim in dims]
        shape = [dim or (sequence if i else batch) for i, dim in enumerate(fixed)]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if np.issubdtype(dtype, np.floating):
            inputs[value.name] = generator.standard_normal(shape).astype(dtype)
        elif "mask" in value.name or dtype == np.bool_:
            inputs[value.name] = np.ones(shape, dtype)
        else:
            inputs[value.name] = generator.integers(0, _rows_looked_up(value), shape).astype(dtype)
    return inputs


def runnable_size(runtime: onnxruntime.InferenceSession, model: ir.Model, batch: int, sizes: Sequence[int]) -> int:
    """Return the first of the sizes at which a model runs when all its dynamic axes but the batch have it.

    Convolutions and positions set limits that a graph does not state. Raises VerificationError if none will do.
    """
    for size in sizes:
        try:
            run(runtime, random_inputs(model, batch, size, seed=0))
        except VerificationError as error:
            last = error
        else:
            return size
    raise VerificationError(f"the dense model runs at none of the sizes {', '.join(map(str, sizes))}: {last}")


def _rows_looked_up(value: ir.Value) -> int:
    """Return the least number of rows of the tables that an integer input indexes; 2 if none is seen."""
    rows = []
    for node, index in value.uses():
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None and table.shape is not None:
            rows.append(int(table.shape.numpy()[0]))
    return min(rows, default=2)


def run(runtime: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> Outputs:
    """Run a session and return its floating-point outputs by name."""
    names = [output.name for output in runtime.get_outputs()]
    try:
        values = runtime.run(names, dict(inputs))
    except _RUNTIME_ERRORS as error:
        raise VerificationError(f"ONNX Runtime cannot run the model ({first_line(error)})") from error
    return {name: value for name, value in zip(names, values, strict=True) if np.issubdtype(value.dtype, np.floating)}


def compare(found: Outputs, expected: Outputs) -> float:
    """Return the largest relative error over the outputs; infinite where a value is not finite."""
    worst = 0.0
    for name, value in expected.items():
        difference = float(np.linalg.norm((found[name].astype(np.float64) - value).ravel()))
        norm = float(np.linalg.norm(value.astype(np.float64).ravel()))
        error = difference / norm if norm else difference
        worst = max(worst, error if np.isfinite(error) else float("inf"))
    return worst


def require(agreements: Sequence[Agreement], what: str, tolerance: float = TOLERANCE) -> None:
    """Raise VerificationError if any of the agreements is outside the tolerance."""
    for agreement in agreements:
        if not agreement.error < tolerance:
            raise VerificationError(
                f"{what}: ONNX Runtime and the torch operator differ by {agreement.error:.1e} at batch "
                f"{agreement.batch} (limit {tolerance:.0e}); the file was not kept; please report this"
            )
