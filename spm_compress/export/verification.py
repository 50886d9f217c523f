"""Does the ONNX file compute what the torch operator computes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import (
    Fail,
    InvalidArgument,
    InvalidGraph,
    NotImplemented,
    RuntimeException,
)

from spm_compress.errors import UsageError, VerificationError, first_line, near_misses
from spm_compress.export.memory import trim

__all__ = [
    "TOLERANCE",
    "Agreement",
    "Outputs",
    "agreement",
    "check_file",
    "check_provider",
    "compare",
    "require",
    "run",
    "session",
]

# Float32 sums in another order differ by about 1e-7 a layer; a wrong index or number by far more than this.
TOLERANCE = 1e-4
_RUNTIME_ERRORS = (Fail, InvalidArgument, InvalidGraph, NotImplemented, RuntimeException)

_OPERATOR = "the torch operator"

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """Largest relative error over the outputs at one batch size: ||onnx - torch|| / ||torch||.

    finite: share of the expected values that are numbers; NaN and infinity on both sides are no difference, but nothing
    was compared there.
    """

    batch: int
    error: float
    finite: float = 1.0


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
            f"`provider` {provider}: this onnxruntime has {', '.join(available)}{near_misses(provider, available)}"
        )


def session(
    model: Path | bytes,
    threads: int = 0,
    provider: str = "CPUExecutionProvider",
    optimized: Path | None = None,
    level: onnxruntime.GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    prepack: bool = True,
) -> onnxruntime.InferenceSession:
    """Open a session; threads: 0 for all cores; optimized: where to write the graph that is really run.

    prepack: whether weights are copied into the order in which they are read fastest.

    Raises VerificationError if ONNX Runtime refuses the model, or goes on without the provider.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = level
    options.log_severity_level = 4  # what fails is said once, by this program
    # Idle threads spin on for a while: of two sessions timed interleaved, each ran beside the other's (2 threads on 2
    # cores, six products of 768x768 at batch 8: 640 us interleaved, 340 us alone; with this, 340 us in both).
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        opened = onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else str(model), options, providers=[provider]
        )
    except _RUNTIME_ERRORS as error:
        raise VerificationError(f"ONNX Runtime cannot load the model ({first_line(error)})") from error
    trim()
    if provider not in opened.get_providers():
        raise VerificationError(f"{provider} did not start here, ONNX Runtime went on without it; check its libraries")
    return opened


def run(runtime: onnxruntime.InferenceSession, inputs: Mapping[str, np.ndarray]) -> Outputs:
    """Run a session and return its floating-point outputs by name; all its numbers where it has none of these."""
    names = [output.name for output in runtime.get_outputs()]
    try:
        values = runtime.run(names, dict(inputs))
    except _RUNTIME_ERRORS as error:
        raise VerificationError(f"ONNX Runtime cannot run the model ({first_line(error)})") from error
    arrays = {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}
    floats = {name: array for name, array in arrays.items() if np.issubdtype(array.dtype, np.floating)}
    return floats or {name: array for name, array in arrays.items() if array.dtype.kind in "biu"}


def agreement(batch: int, found: Outputs, expected: Outputs) -> Agreement:
    """Return how well two answers agree."""
    sizes = sum(value.size for value in expected.values())
    finite = sum(int(np.isfinite(value).sum()) for value in expected.values())
    return Agreement(batch, compare(found, expected), finite / sizes if sizes else 1.0)


def compare(found: Outputs, expected: Outputs) -> float:
    """Return the largest relative error over the outputs; infinite where only one side is not finite.

    Where both are the same infinity, or NaN, nothing differs.
    """
    worst = 0.0
    for name, value in expected.items():
        x, y = found[name].astype(np.float64), value.astype(np.float64)
        if x.shape != y.shape:
            return float("inf")
        numbers = np.isfinite(y)
        if not np.array_equal(x[~numbers], y[~numbers], equal_nan=True) or not np.isfinite(x[numbers]).all():
            return float("inf")
        difference, norm = float(np.linalg.norm(x[numbers] - y[numbers])), float(np.linalg.norm(y[numbers]))
        worst = max(worst, difference / norm if norm else difference)
    return worst


def require(agreements: Sequence[Agreement], what: str, tolerance: float = TOLERANCE, other: str = _OPERATOR) -> None:
    """Raise VerificationError if any of the agreements is outside the tolerance, or is about nothing."""
    for each in agreements:
        if not each.finite:
            raise VerificationError(
                f"{what}: the original model, too, answers with nothing but NaN or infinity on every input that was "
                "tried, so there is nothing to compare; give inputs that it can take with `known`"
            )
        if not each.error < tolerance:
            raise VerificationError(
                f"{what}: ONNX Runtime and {other} differ by {each.error:.1e} at batch "
                f"{each.batch} (limit {tolerance:.0e}); the file was not kept; please report this"
            )
