"""One graph on its way to a file: its layers replaced in some way, or in the fastest, timed, written and verified."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.onnx_source import all_tensors
from spm_compress.errors import ExportError, VerificationError
from spm_compress.export.choice import Choice, asked_for, model_key, plans, remembered, rows_of_layers
from spm_compress.export.live import Answers, Steps
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.memory import release, trim
from spm_compress.export.saving import save
from spm_compress.export.settings import ExportSettings, Precision, Weights
from spm_compress.export.splicing.declared import Declared, declare
from spm_compress.export.splicing.matches import Digests
from spm_compress.export.splicing.splice import Spliced, splice
from spm_compress.export.splicing.writer import NBITS_OPSET
from spm_compress.export.trials import SIZES, Known, find_trial
from spm_compress.export.verification import (
    TOLERANCE,
    Agreement,
    Outputs,
    agreement,
    check_file,
    require,
    run,
    session,
)
from spm_compress.forms.lowering import Dense, Int8, Lowering, NBits

__all__ = ["BATCHES", "ROUNDED", "Expected", "Verified", "Work", "expected_of", "rounds_activations", "verified"]

# Batch sizes at which every exported file is compared with the torch operator.
BATCHES = (1, 3, 16)
# Float16 rounds at 5e-4, several times a layer; int8 activations jump by 1/127 of their range where float32 rounds.
_TOLERANCES = {Precision.FLOAT32: TOLERANCE, Precision.FLOAT16: 2e-2, Precision.INT8: 2e-2}
# Activations of 8 bits, rounded at every layer: MiniLM on random tokens 0.13 with int4 maps, 0.3 with 3 bits. What else
# can be wrong shows in the file without them, which is verified first.
ROUNDED = 1.0
# A whole model that is this much slower than dense is not kept as it is; less than this is noise.
_SLOWER = 0.97
_REPEATS, _SECONDS = 30, 2.0


@dataclass(frozen=True)
class Work:
    """A dense graph whose layers are to be replaced.

    expected: what has to be computed; said: what inputs and outputs are declared as; known: inputs;
    digests: of the matrices of the graph.
    """

    dense: ir.Model
    layers: Sequence[FittedLayer]
    settings: ExportSettings
    expected: Expected
    path: Path
    said: Declared
    known: Known
    digests: Digests

    def write(self, lowerings: Mapping[str, Lowering]) -> tuple[Spliced, Verified]:
        """Write the model with these lowerings and verify it.

        Raises VerificationError, and ExportError where a converter has changed a weight until it is not found.
        """
        rounded = {name for name, lowering in lowerings.items() if rounds_activations(lowering)}
        if rounded:  # first the same without rounded activations, which has to be exact
            self.write({**lowerings, **dict.fromkeys(rounded, Dense())})
        model = self.dense.clone()
        spliced = splice(model, self.layers, lowerings, self.digests)
        if spliced.missing:
            raise ExportError(
                f"{', '.join(spliced.missing)}: not found in the graph any more after its conversion to "
                f"{self.settings.precision.value}; export in float32, or leave it out of the fit with `exclude`"
            )
        declare(model, self.said)
        save(model, self.path)
        del model
        release(self.dense)
        tolerance = ROUNDED if rounded else _tolerance_of(self.dense, self.settings.precision)
        return spliced, verified(self.path, self.expected, self.path.name, self.settings, tolerance)

    def write_fastest(self, scratch: Path) -> tuple[Spliced, Verified, tuple[Choice, ...], dict[int, float]]:
        """Write the model as the plan that is fastest as a whole, or all dense where none is at every batch."""
        tried: list[Path] = [save(self.dense, scratch / "dense.onnx", inside=False)]
        rows = rows_of_layers(self.dense, self.layers, self.settings, scratch, self.known, self.digests)
        settings = self.settings
        if settings.weights is Weights.AUTO and self.dense.opset_imports[""] < NBITS_OPSET:
            settings = replace(settings, weights=Weights.FOLDED)
        found = plans(self.layers, rows, settings)
        for i, plan in enumerate(found):
            model = self.dense.clone()
            # Where the matrix is made at load the product that is there runs, which takes no memory to make.
            lowerings = {choice.layer: choice.lowering for choice in plan if choice.lowering.layout is not None}
            replaced = [layer for layer in self.layers if layer.name in lowerings or layer.name not in rows]
            splice(model, replaced, lowerings, self.digests)
            tried.append(save(model, scratch / f"{i}.onnx", inside=False))
            del model
        release(self.dense)
        speedups = self.speedups([[choice.lowering.name for choice in plan] for plan in found], tried)
        best = max(range(len(found)), key=lambda i: math.prod(speedups[i].values()))
        choices, reached = found[best], speedups[best]
        if min(reached.values()) < _SLOWER:
            asked = {layer.name for layer in self.layers if asked_for(layer, settings) is not None}
            choices = tuple(each if each.layer in asked else _kept_dense(each, reached) for each in choices)
        spliced, agreed = self.write({choice.layer: choice.lowering for choice in choices})
        if min(reached.values()) < _SLOWER:
            (reached,) = self.speedups([[choice.lowering.name for choice in choices]], [tried[0], self.path])
        return spliced, agreed, choices, reached

    def speedups(self, lowerings: Sequence[Sequence[str]], paths: Sequence[Path]) -> list[dict[int, float]]:
        """Return `_speedups` of models with these lowerings, as they were when the same models were first timed."""
        key = model_key(paths[0], self.layers, lowerings, self.settings, self.known)
        times = functools.partial(_speedups, paths, self.settings, self.known)
        found = remembered(key, lambda: [list(each.items()) for each in times()])
        return [dict(each) for each in found]


def rounds_activations(lowering: Lowering) -> bool:
    """Return whether a lowering is exact only but for the rounding of activations."""
    return isinstance(lowering, Int8 | NBits)


def _passes_checker(path: Path) -> bool:
    try:
        check_file(path)
    except VerificationError:
        return False
    return True


def _tolerance_of(dense: ir.Model, precision: Precision) -> float:
    """Return that of the precision, or of float16 where the graph had such tensors before."""
    is_narrow = any(tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for _, tensor in all_tensors(dense))
    return _TOLERANCES[Precision.FLOAT16 if is_narrow else precision]


@dataclass(frozen=True)
class Expected:
    """What a model has to answer: inputs and answers by batch, for all of BATCHES.

    is_proper: whether onnx.checker takes the graph that answered. One that it refuses (an output without a shape) is
    not made worse by this program. live: what the torch module answered, where there is one.
    """

    inputs: Mapping[int, Mapping[str, Any]]
    answers: Mapping[int, Outputs]
    is_proper: bool = True
    live: Steps | Answers | None = None


@dataclass(frozen=True)
class Verified:
    """How well a file agrees: with what is expected at each batch, and with the torch module, where there is one."""

    agreements: tuple[Agreement, ...]
    live: Agreement | None


def expected_of(reference: Path | bytes, graph: ir.Model, known: Known | None = None) -> Expected:
    """Return what a file answers. graph: what its inputs are said by. Raises VerificationError if it does not run."""
    right = session(reference, prepack=False)  # it runs three times: copies of its weights would be for nothing
    trial = find_trial(right, graph, BATCHES[0], known=known)
    inputs = {batch: trial.inputs(graph, batch, seed=batch) for batch in BATCHES}
    answers = {batch: run(right, inputs[batch]) for batch in BATCHES}
    return Expected(inputs, answers, isinstance(reference, bytes) or _passes_checker(reference))


def verified(path: Path, expected: Expected, name: str, settings: ExportSettings, tolerance: float) -> Verified:
    """Compare a file with what is expected. Raises VerificationError, by the file's name."""
    if expected.is_proper:
        check_file(path)
    found = session(path, provider=settings.provider, prepack=False)
    agreements = [
        agreement(batch, run(found, inputs), expected.answers[batch]) for batch, inputs in expected.inputs.items()
    ]
    require(agreements, name, tolerance)
    live = None if expected.live is None else expected.live.agreement(found)
    if live is not None:
        require([live], name, tolerance, "the torch module")
    return Verified(tuple(agreements), live)


def _speedups(paths: Sequence[Path], settings: ExportSettings, known: Known) -> list[dict[int, float]]:
    """Time each model but the first interleaved with the first; return: batch -> how many times as fast it is."""
    inputs_of = ir.load(paths[0])
    sizes = (settings.sequence, *SIZES)
    inputs: dict[int, Mapping[str, Any]] = {}
    speedups: list[dict[int, float]] = []
    for path in paths[1:]:  # two in memory at a time, and the one that takes more while it loads is loaded first
        runtime = session(path, settings.threads, settings.provider)
        dense = session(paths[0], settings.threads, settings.provider)
        reached = {}
        for batch in settings.batches:
            if batch not in inputs:
                inputs[batch] = find_trial(dense, inputs_of, batch, sizes, known).inputs(inputs_of, batch, seed=0)
            calls = {str(i): functools.partial(run, each, inputs[batch]) for i, each in enumerate((dense, runtime))}
            times = interleaved(calls, repeats=_REPEATS, seconds=_SECONDS)
            reached[batch] = times["0"].median / times["1"].median
        speedups.append(reached)
        del calls, runtime, dense
        trim()
    return speedups


def _kept_dense(choice: Choice, speedups: Mapping[int, float]) -> Choice:
    if isinstance(choice.lowering, Dense) or Dense().name not in choice.microseconds:
        return choice
    slowest = min(speedups, key=speedups.__getitem__)
    reason = (
        f"{choice.reason} by itself ({choice.lowering.name}), "
        f"but with such layers the whole model runs at {speedups[slowest]:.2f}x at batch {slowest}"
    )
    return Choice(choice.layer, Dense(), choice.rows, choice.microseconds, reason)
