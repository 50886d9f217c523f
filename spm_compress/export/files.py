"""From an artifact to ONNX files: dense graph, splice, write, verify."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
import torch

from spm_compress.checkpoint.artifact import Artifact, FittedLayer
from spm_compress.checkpoint.factory_source import FactorySource
from spm_compress.checkpoint.files import write_whole, write_whole_set
from spm_compress.checkpoint.keys import is_storable
from spm_compress.checkpoint.modules import is_live
from spm_compress.checkpoint.onnx_source import all_tensors, open_graph
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.source import Source
from spm_compress.errors import ExportError, VerificationError
from spm_compress.export.choice import Choice, plans, remembered, rows_of_layers
from spm_compress.export.file_names import file_names
from spm_compress.export.graph import (
    WAYS,
    chain_of_linears,
    from_factory,
    from_huggingface,
    from_module,
    from_program,
)
from spm_compress.export.lowering import Dense, Lowering
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.precision import in_precision
from spm_compress.export.saving import save, size_of
from spm_compress.export.settings import ExportSettings, Precision
from spm_compress.export.splicing.splice import Spliced, dense_model, layer_model, splice, with_operator_matrices
from spm_compress.export.verification import (
    SIZES,
    TOLERANCE,
    Agreement,
    check_file,
    compare,
    random_inputs,
    require,
    run,
    runnable_size,
    session,
)

__all__ = ["BATCHES", "Exported", "export_layers", "export_onnx"]

# Batch sizes at which every exported file is compared with the torch operator.
BATCHES = (1, 3, 16)
# Float16 rounds at 5e-4, several times a layer; int8 activations jump by 1/127 of their range where float32 rounds.
_TOLERANCES = {Precision.FLOAT32: TOLERANCE, Precision.FLOAT16: 2e-2, Precision.INT8: 2e-2}
# A whole model that is this much slower than dense is not kept as it is; less than this is noise.
_SLOWER = 0.97
_REPEATS, _SECONDS = 30, 2.0


@dataclass(frozen=True)
class Exported:
    """One file that was written and verified.

    bytes, dense_bytes: with data files, of it and of the dense graph it came from; choices: how each layer runs and
    why, if that was measured; speedups: batch -> time of the dense graph over this one's, measured in turns.
    """

    path: Path
    bytes: int
    dense_bytes: int
    spliced: Spliced
    agreements: tuple[Agreement, ...]
    choices: tuple[Choice, ...] = ()
    speedups: Mapping[int, float] = field(default_factory=dict)


def export_onnx(
    artifact: Artifact,
    path: Path,
    *,
    source: Source | None = None,
    graph: Path | None = None,
    activation: str = "relu",
    settings: ExportSettings | None = None,
    dense_path: Path | None = None,
) -> Exported:
    """Write the whole compressed model as one ONNX file and verify it against the torch operator.

    Give the dense graph (`graph`, an ONNX file), or the `source`: an ONNX model, a Hugging Face folder or a plain chain
    of linears (`activation` stands between them). The file appears only if it is verified. dense_path: where to put
    the dense graph too, to compare with.

    Raises ExportError where no graph can be had, VerificationError if ONNX Runtime and torch differ.
    """
    settings = settings or ExportSettings()
    if artifact.retrained and (graph is not None or source is None or not is_live(source)):
        raise ExportError(
            f"the artifact was trained after its fit, and a graph with its {len(artifact.retrained)} changed biases "
            "and norms can be made from its Hugging Face folder or factory only; leave --graph out"
        )
    dense = _dense_graph(source, graph, activation, artifact.retrained)
    if dense_path is not None:
        with write_whole_set(dense_path) as folder:
            save(_dense_graph(source, graph, activation) if artifact.retrained else dense, folder / dense_path.name)
    with write_whole_set(path) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        original = save(dense, scratch / "original.onnx")
        dense, layers = in_precision(dense, artifact.layers, settings.precision)
        reference = dense.clone()
        with_operator_matrices(reference, layers)
        expected = save(reference, scratch / "reference.onnx")
        work = _Work(dense, layers, settings, expected, folder / path.name)
        choices: tuple[Choice, ...] = ()
        speedups: dict[int, float] = {}
        if settings.lowering is not None:
            spliced, agreements = work.write({layer.name: settings.lowering for layer in layers})
        else:
            spliced, agreements, choices, speedups = work.write_fastest(scratch)
        size, dense_size = size_of(folder / path.name), size_of(original)
    return Exported(path, size, dense_size, spliced, agreements, choices, speedups)


def export_layers(artifact: Artifact, folder: Path, *, settings: ExportSettings | None = None) -> list[Exported]:
    """Write each fitted layer, without its bias, as an ONNX model of its own into a folder; verify each."""
    settings = settings or ExportSettings()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be made a folder ({error.strerror}); choose another name") from error
    choices: dict[str, Choice] = {}
    if settings.lowering is None:
        rows = {layer.name: settings.batches for layer in artifact.layers}
        choices = {choice.layer: choice for choice in plans(artifact.layers, rows, settings)[0]}
    written = []
    for layer, name in zip(artifact.layers, file_names([layer.name for layer in artifact.layers]), strict=True):
        path = folder / f"{name}.onnx"
        lowering = settings.lowering or choices[layer.name].lowering
        # ONNX has names of Unicode, and none for a graph without one.
        named = replace(layer, names=(layer.name if is_storable(layer.name) and layer.name else name,))
        with write_whole(path) as temporary:
            save(layer_model(named, lowering), temporary)
            expected = ir.serde.serialize_model(dense_model(named)).SerializeToString()
            agreements = _verified(temporary, expected, path.name, settings, TOLERANCE)
        out, into = layer.shape
        spliced = Spliced({layer.name: [layer.name]}, ())
        chosen = (choices[layer.name],) if choices else ()
        written.append(Exported(path, path.stat().st_size, 4 * out * into, spliced, agreements, chosen))
    return written


def _dense_graph(
    source: Source | None, graph: Path | None, activation: str, changed: Mapping[str, torch.Tensor] | None = None
) -> ir.Model:
    if graph is not None:
        return open_graph(graph)
    if source is None:
        raise ExportError(f"there is no graph to put the layers into; {WAYS}")
    if source.graph is not None:
        return open_graph(source.graph)
    if isinstance(source, ProgramSource):
        return from_program(source.program)
    if isinstance(source, FactorySource):
        return from_factory(source, changed)
    if source.config is not None:
        return from_huggingface(source, changed)[1]
    chain = chain_of_linears(source, activation)
    width = next(layer.in_features for layer in chain if isinstance(layer, torch.nn.Linear))
    example = {"input": torch.zeros(2, width)}
    return from_module(chain, example, {"input": {0: "batch"}}, ["output"])


@dataclass(frozen=True)
class _Work:
    """A dense graph whose layers are to be replaced; expected: the file that says what has to be computed."""

    dense: ir.Model
    layers: Sequence[FittedLayer]
    settings: ExportSettings
    expected: Path
    path: Path

    def write(self, lowerings: Mapping[str, Lowering]) -> tuple[Spliced, tuple[Agreement, ...]]:
        model = self.dense.clone()
        spliced = splice(model, self.layers, lowerings)
        save(model, self.path)
        tolerance = _tolerance(self.dense, self.settings.precision)
        return spliced, _verified(self.path, self.expected, self.path.name, self.settings, tolerance)

    def write_fastest(
        self, scratch: Path
    ) -> tuple[Spliced, tuple[Agreement, ...], tuple[Choice, ...], dict[int, float]]:
        """Write the model as the plan that is fastest as a whole, or all dense where none is at every batch."""
        tried: list[Path] = [save(self.dense, scratch / "dense.onnx")]
        rows = rows_of_layers(self.dense, self.layers, self.settings, scratch)
        found = plans(self.layers, rows, self.settings)
        for i, plan in enumerate(found):
            model = self.dense.clone()
            splice(model, self.layers, {choice.layer: choice.lowering for choice in plan})
            tried.append(save(model, scratch / f"{i}.onnx"))
        speedups = self.speedups([[choice.lowering.name for choice in plan] for plan in found], tried)
        best = max(range(len(found)), key=lambda i: math.prod(speedups[i].values()))
        choices, reached = found[best], speedups[best]
        if min(reached.values()) < _SLOWER:
            choices = tuple(_kept_dense(choice, reached) for choice in choices)
        spliced, agreements = self.write({choice.layer: choice.lowering for choice in choices})
        if min(reached.values()) < _SLOWER:
            (reached,) = self.speedups([["dense"] * len(choices)], [tried[0], self.path])
        return spliced, agreements, choices, reached

    def speedups(self, lowerings: Sequence[Sequence[str]], paths: Sequence[Path]) -> list[dict[int, float]]:
        """Return `_speedups` of models with these lowerings, as they were when the same models were first timed."""
        known = [(layer.sha256, layer.spm.structure) for layer in self.layers]
        question = (known, lowerings, self.settings)
        found = remembered(question, lambda: [list(each.items()) for each in _speedups(paths, self.settings)])
        return [dict(each) for each in found]


def _passes_checker(path: Path) -> bool:
    try:
        check_file(path)
    except VerificationError:
        return False
    return True


def _tolerance(dense: ir.Model, precision: Precision) -> float:
    """Return that of the precision, or of float16 where the graph had such tensors before."""
    is_narrow = any(tensor.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) for _, tensor in all_tensors(dense))
    return _TOLERANCES[Precision.FLOAT16 if is_narrow else precision]


def _verified(
    path: Path, expected: Path | bytes, name: str, settings: ExportSettings, tolerance: float
) -> tuple[Agreement, ...]:
    # A dense graph that the checker refuses (an output without a shape) is not made worse by this program.
    if isinstance(expected, bytes) or _passes_checker(expected):
        check_file(path)
    found, right = session(path, provider=settings.provider), session(expected)
    inputs_of = ir.load(path)
    size = runnable_size(right, inputs_of, BATCHES[0], SIZES)
    agreements = []
    for batch in BATCHES:
        inputs = random_inputs(inputs_of, batch, size, seed=batch)
        agreements.append(Agreement(batch, compare(run(found, inputs), run(right, inputs))))
    require(agreements, name, tolerance)
    return tuple(agreements)


def _speedups(paths: Sequence[Path], settings: ExportSettings) -> list[dict[int, float]]:
    """Time models in turns; return for each but the first: batch -> how many times as fast as the first it is."""
    sessions = [session(path, settings.threads, settings.provider) for path in paths]
    inputs_of = ir.load(paths[0])
    speedups: list[dict[int, float]] = [{} for _ in paths[1:]]
    for batch in settings.batches:
        size = runnable_size(sessions[0], inputs_of, batch, (settings.sequence, *SIZES))
        inputs = random_inputs(inputs_of, batch, size, seed=0)
        calls = {str(i): functools.partial(run, runtime, inputs) for i, runtime in enumerate(sessions)}
        times = interleaved(calls, repeats=_REPEATS, seconds=_SECONDS)
        for i, reached in enumerate(speedups, 1):
            reached[batch] = times["0"].median / times[str(i)].median
    return speedups


def _kept_dense(choice: Choice, speedups: Mapping[int, float]) -> Choice:
    if isinstance(choice.lowering, Dense):
        return choice
    slowest = min(speedups, key=speedups.__getitem__)
    reason = (
        f"{choice.reason} by itself ({choice.lowering.name}), "
        f"but with such layers the whole model runs at {speedups[slowest]:.2f}x at batch {slowest}"
    )
    return Choice(choice.layer, Dense(), choice.rows, choice.microseconds, reason)
