"""How far the outputs of two ONNX files are apart, on every provider: a compressed model beside the dense one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from spm_compress.errors import VerificationError
from spm_compress.export.same_inputs import open_alike, open_file, run_file, sizes, trial_of
from spm_compress.export.verification import Outputs, check_provider, compare

__all__ = ["SCHEMA", "Difference", "SideBySide", "VerifySettings", "require_below", "side_by_side", "side_by_side_json"]

SCHEMA = "spm-compress/verify/1"


@dataclass(frozen=True)
class VerifySettings:
    """At what two models are compared: every combination of the first three; seed: of the random inputs."""

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    batches: tuple[int, ...] = (1, 8)
    sequences: tuple[int, ...] = (16, 128)
    seed: int = 0


@dataclass(frozen=True)
class Difference:
    """One output at one combination. sequence: None for a model that has no dynamic axis but the batch.

    error: relative Frobenius error ||model - against|| / ||against||; largest: absolute difference of one entry;
    cosine: between the vectors along the last axis, on average.
    """

    provider: str
    batch: int
    sequence: int | None
    output: str
    error: float
    largest: float
    cosine: float


@dataclass(frozen=True)
class SideBySide:
    """All differences, in the order of the settings."""

    model: Path
    against: Path
    settings: VerifySettings
    differences: tuple[Difference, ...]


def side_by_side(
    model: Path,
    against: Path,
    settings: VerifySettings | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> SideBySide:
    """Run two ONNX models on the same random inputs, both on the same provider. progress: is told a line a step.

    Raises UsageError for a provider that is not there, SourceError for a file that cannot be read, VerificationError
    for a model that ONNX Runtime cannot load or run, or for two models whose inputs or outputs differ.
    """
    settings = settings or VerifySettings()
    for provider in settings.providers:
        check_provider(provider)
    graph = open_alike([model, against])
    batches, sequences = sizes(graph, settings.batches, settings.sequences)
    differences: list[Difference] = []
    for provider in settings.providers:
        sessions = [open_file(path, 0, provider) for path in (model, against)]
        for batch, sequence in itertools.product(batches, sequences):
            trial = trial_of(against, sessions[-1], graph, batch, sequence or 1)
            inputs = trial.inputs(graph, batch, settings.seed)
            found, expected = (
                run_file(path, runtime, inputs) for path, runtime in zip((model, against), sessions, strict=True)
            )
            if found.keys() != expected.keys() or any(found[name].shape != expected[name].shape for name in found):
                raise VerificationError(
                    f"{model} answers with {_shapes(found)}, but {against} with {_shapes(expected)}; "
                    "only models with the same outputs can be compared"
                )
            differences += [
                _difference(provider, batch, sequence, name, found[name], value) for name, value in expected.items()
            ]
            progress(f"{provider}, batch {batch}{'' if sequence is None else f', sequence {sequence}'}: compared")
    if not differences:
        raise VerificationError(f"{against}: has no output of numbers to compare")
    return SideBySide(model, against, settings, tuple(differences))


def require_below(found: SideBySide, limit: float) -> None:
    """Raise VerificationError if a relative error is above the limit."""
    worst = max(found.differences, key=lambda each: each.error)
    if not worst.error <= limit:
        raise VerificationError(
            f"{found.model}: output {worst.output} differs by {worst.error:.2g} from {found.against} at batch "
            f"{worst.batch} on {worst.provider}, more than `max_error` {limit}"
        )


def side_by_side_json(found: SideBySide) -> dict[str, Any]:
    """Return the results as JSON values, with `schema` as their version."""
    return {
        "schema": SCHEMA,
        "model": str(found.model),
        "against": str(found.against),
        "onnxruntime": onnxruntime.__version__,
        "settings": asdict(found.settings),
        "differences": [asdict(each) for each in found.differences],
    }


def _difference(
    provider: str, batch: int, sequence: int | None, name: str, found: np.ndarray, expected: np.ndarray
) -> Difference:
    x, y = found.astype(np.float64), expected.astype(np.float64)
    norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1) if x.ndim else np.abs(x * y)
    products = (x * y).sum(-1) if x.ndim else x * y
    cosine = float(np.mean(np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)))
    both = np.isfinite(x) & np.isfinite(y)
    largest = float(np.abs(x[both] - y[both]).max(initial=0.0))
    return Difference(provider, batch, sequence, name, compare({name: found}, {name: expected}), largest, cosine)


def _shapes(outputs: Outputs) -> str:
    return ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items()) or "nothing"
