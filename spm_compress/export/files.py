"""From an artifact to ONNX files: dense graph, splice, write, verify."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnxscript.version_converter import convert_version
from torch import nn

from spm_compress.calibration.data import read_batches
from spm_compress.checkpoint.artifact import Artifact, FittedLayer
from spm_compress.checkpoint.files import write_whole, write_whole_set
from spm_compress.checkpoint.keys import is_storable
from spm_compress.checkpoint.modules import is_bare
from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.checkpoint.source import Source, open_source
from spm_compress.compress.module import apply_artifact
from spm_compress.errors import ExportError, SpmError
from spm_compress.export.choice import Choice, asked_for, plans
from spm_compress.export.dense_graphs import dense_graphs
from spm_compress.export.file_names import file_names
from spm_compress.export.graph import DenseGraph
from spm_compress.export.live import LIVE_BATCH, Answers, Steps, answers_of, steps_of
from spm_compress.export.memory import forget_tensors, release, trim
from spm_compress.export.one_file import BATCHES, ROUNDED, Expected, Work, expected_of, rounds_activations, verified
from spm_compress.export.precision import check_precision, in_precision
from spm_compress.export.reference import with_operator_matrices
from spm_compress.export.saving import save, size_of
from spm_compress.export.settings import ExportSettings, Weights
from spm_compress.export.splicing.declared import declare, declared, hand_out_copies
from spm_compress.export.splicing.layer_model import dense_model, layer_model
from spm_compress.export.splicing.matches import Digests, lookups, matches, none_found
from spm_compress.export.splicing.splice import Spliced
from spm_compress.export.splicing.writer import NBITS_OPSET
from spm_compress.export.trials import Known
from spm_compress.export.verification import TOLERANCE, Agreement
from spm_compress.forms.lowering import Dense

__all__ = ["BATCHES", "Exported", "export_layers", "export_onnx", "first_batch"]


@dataclass(frozen=True)
class Exported:
    """One file that was written and verified.

    bytes, dense_bytes: with data files, of it and of the dense graph it came from; agreements: with the dense graph
    that has the operators' matrices in it; live: with the torch module, where there is one; choices: how each layer
    runs and why, if that was measured; speedups: batch -> time of the dense graph over this one's, interleaved.
    has_past: whether it takes and gives keys and values; others: the other files of a model that is several graphs.
    """

    path: Path
    bytes: int
    dense_bytes: int
    spliced: Spliced
    agreements: tuple[Agreement, ...]
    choices: tuple[Choice, ...] = ()
    speedups: Mapping[int, float] = field(default_factory=dict)
    live: Agreement | None = None
    has_past: bool = False
    others: tuple[Exported, ...] = ()

    @property
    def files(self) -> tuple[Exported, ...]:
        """This file, then the others."""
        return (self, *self.others)


def export_onnx(
    artifact: Artifact,
    path: Path,
    *,
    source: Source | None = None,
    graph: Path | None = None,
    activation: str = "relu",
    settings: ExportSettings | None = None,
    dense_path: Path | None = None,
    known: Mapping[str, np.ndarray] | None = None,
) -> Exported:
    """Write the whole compressed model as ONNX and verify it against the torch operator.

    Give the dense graph (`graph`, an ONNX file), or the `source`: an ONNX model, a Hugging Face folder or a plain chain
    of linears (`activation` stands between them). The file appears only if it is verified: against the dense graph in
    which every stored weight is the operator's matrix (`reference`), and against the live module where there is one. An
    encoder-decoder becomes NAME.encoder.onnx and NAME.decoder.onnx. dense_path: where to put the dense graph too, to
    compare with. known: inputs that the model can take, by name, the first axis being the samples.

    Raises ExportError where no graph can be had, or a fitted weight is not in it and `settings` do not allow that,
    VerificationError if ONNX Runtime and torch differ.
    """
    settings = settings or ExportSettings()
    if artifact.retrained and (graph is not None or source is None or is_bare(source)):
        raise ExportError(
            f"the artifact was trained after its fit, and a graph with its {len(artifact.retrained)} changed biases "
            "and norms can be made from the model that was fitted only; leave `graph` out"
        )
    if dense_path is not None and artifact.retrained:
        for each in dense_graphs(source, graph, activation, with_past=settings.with_past):
            _write(each.model, _part(dense_path, each.part))
    found = dense_graphs(source, graph, activation, artifact.retrained, with_past=settings.with_past)
    lives = {id(each.live.module): each.live.module for each in found if each.live is not None}
    # The dense graphs share the module's memory until they are written; only then are its layers replaced.
    with (
        tempfile.TemporaryDirectory(dir=_folder_of(path), prefix=f".{path.name}.", suffix=".tmp") as scratch,
        contextlib.ExitStack() as written,
    ):
        files = [save(each.model, Path(scratch) / f"{i}.onnx", inside=False) for i, each in enumerate(found)]
        for each in found:
            forget_tensors(each.model)
        found = [replace(each, model=open_graph(file)) for each, file in zip(found, files, strict=True)]
        digests = [Digests() for _ in found]
        layers_of = _layers_of(found, artifact.layers, settings, digests)
        layers = tuple(layer for layer in artifact.layers if any(layer in inside for inside in layers_of))
        for each in found:
            if dense_path is not None and not artifact.retrained:
                _write(each.model, _part(dense_path, each.part))
            hand_out_copies(each.model)
        held = [x for module in lives.values() for x in (*module.parameters(), *module.buffers())]
        _replace_layers(lives.values(), replace(artifact, layers=layers))
        prepared = [
            _prepared(
                replace(each, known=each.known if known is None else Known(known)),
                inside,
                _part(path, each.part),
                written.enter_context(write_whole_set(_part(path, each.part))),
                settings,
                known_digests,
            )
            for each, inside, known_digests in zip(found, layers_of, digests, strict=True)
        ]
        sizes = [size_of(file) for file in files]
        _empty([*held, *(x for module in lives.values() for x in module.parameters())])
        del found, held, lives
        trim()
        first, *others = [_written(each, size, settings) for each, size in zip(prepared, sizes, strict=True)]
    missing = tuple(layer.name for layer in artifact.layers if layer not in layers)
    return replace(first, spliced=replace(first.spliced, missing=missing), others=tuple(others))


def first_batch(source: Source | None, graph: Path | None, data: Path) -> Mapping[str, np.ndarray]:
    """Return the first batch of calibration data, as `known` of `export_onnx`. Raises as `read_batches`."""
    if source is None:
        assert graph is not None
        source = open_source(graph)
    return read_batches(source, data)[0]


def _replace_layers(modules: Iterable[nn.Module], artifact: Artifact) -> None:
    for module in modules:
        apply_artifact(module, artifact)


def _empty(tensors: Iterable[torch.Tensor]) -> None:
    """Let go of the memory of modules that have answered; the exporter still knows their tensors."""
    for x in tensors:
        x.data = torch.empty(0, dtype=x.dtype)


@dataclass(frozen=True)
class _Prepared:
    """One graph of a model, ready to be written in any way."""

    path: Path
    work: Work
    scratch: Path
    has_past: bool


def _prepared(
    dense: DenseGraph,
    layers: Sequence[FittedLayer],
    path: Path,
    folder: Path,
    settings: ExportSettings,
    digests: Digests,
) -> _Prepared:
    """Find out what one graph has to answer.

    layers: those in one of the graphs; folder: where it waits to be named; digests: of the graph's matrices.
    """
    scratch = folder / "scratch"
    scratch.mkdir()
    said = declared(dense.model)
    if settings.weights is not Weights.FOLDED and dense.live is not None:  # made here, at an opset of our choice
        convert_version(dense.model, NBITS_OPSET)
    model, layers = in_precision(dense.model, layers, settings.precision, digests)
    if model is not dense.model:  # of other tensors: the old ones need not be held
        digests = Digests()
    reference = model.clone()
    with_operator_matrices(reference, layers)
    declare(reference, said)
    file = save(reference, scratch / "reference.onnx", inside=False)
    del reference
    check_precision(file, settings.precision)
    release(model)
    expected = expected_of(file, model, dense.known)
    file.with_name(f"{file.name}.data").unlink(missing_ok=True)
    if dense.live is not None:
        expected = replace(expected, live=_live_answer(dense, expected))
    work = Work(model, layers, settings, expected, folder / path.name, said, dense.known, digests)
    return _Prepared(path, work, scratch, dense.has_past)


def _written(prepared: _Prepared, dense_size: int, settings: ExportSettings) -> Exported:
    """Write a graph and verify it."""
    work = prepared.work
    choices: tuple[Choice, ...] = ()
    speedups: dict[int, float] = {}
    if settings.lowering is not None or not work.layers:
        spliced, found = work.write({layer.name: asked_for(layer, settings) or Dense() for layer in work.layers})
    else:
        spliced, found, choices, speedups = work.write_fastest(prepared.scratch)
    return Exported(
        prepared.path,
        size_of(work.path),
        dense_size,
        spliced,
        found.agreements,
        choices,
        speedups,
        found.live,
        prepared.has_past,
    )


def _live_answer(dense: DenseGraph, expected: Expected) -> Steps | Answers:
    """Return what the torch module in which the layers are replaced answers; with a past, to tokens in a row."""
    assert dense.live is not None
    if dense.has_past:
        return steps_of(dense.live.answer, dense.example)
    return answers_of(dense.live.answer, expected.inputs[LIVE_BATCH])


def _layers_of(
    graphs: Sequence[DenseGraph], layers: Sequence[FittedLayer], settings: ExportSettings, digests: Sequence[Digests]
) -> list[tuple[FittedLayer, ...]]:
    """Return each graph's layers. Raises ExportError if one is in none of the graphs, unless that is allowed."""
    names = [
        {match.layer.name for match in matches(each.model, layers, known)}
        | {lookup.layer.name for lookup in lookups(each.model, layers, known)}
        for each, known in zip(graphs, digests, strict=True)
    ]
    missing = [layer.name for layer in layers if layer.name not in set().union(*names)]
    if layers and len(missing) == len(layers):
        raise none_found(layers)
    if missing and not settings.allow_missing:
        others = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise ExportError(
            f"{', '.join(missing[:3])}{others}: fitted, but the graph does not multiply by what the artifact has of it "
            "(the exporter may have joined it with what stands beside it); leave it out of the fit with `exclude`, or "
            "export without it with `allow_missing`"
        )
    return [tuple(layer for layer in layers if layer.name in inside) for inside in names]


def _part(path: Path, part: str) -> Path:
    """Return the path of one of the graphs of a model: NAME.encoder.onnx."""
    return path.with_name(f"{path.stem}.{part}{path.suffix}") if part else path


def _folder_of(path: Path) -> Path:
    if not path.parent.is_dir():
        raise SpmError(f"{path}: cannot be written (there is no folder {path.parent}); make it, or choose another name")
    return path.parent


def _write(model: ir.Model, path: Path) -> None:
    with write_whole_set(path) as folder:
        save(model, folder / path.name)


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
        lowering = asked_for(layer, settings) or choices[layer.name].lowering
        # ONNX has names of Unicode, and none for a graph without one.
        named = replace(layer, names=(layer.name if is_storable(layer.name) and layer.name else name,))
        dense = dense_model(named)
        expected = expected_of(ir.serde.serialize_model(dense).SerializeToString(), dense)
        with write_whole(path) as temporary:
            is_rounded = rounds_activations(lowering)
            for way in (Dense(), lowering) if is_rounded else (lowering,):  # as in `Work.write`: exact first
                save(layer_model(named, way), temporary)
                tolerance = ROUNDED if way is lowering and is_rounded else TOLERANCE
                agreements = verified(temporary, expected, path.name, settings, tolerance).agreements
        out, into = layer.shape
        spliced = Spliced({layer.name: [layer.name]}, (), {layer.name: lowering.name})
        chosen = (choices[layer.name],) if choices else ()
        written.append(Exported(path, path.stat().st_size, 4 * out * into, spliced, agreements, chosen))
    return written
