"""A whole model: select, fit, measure, and put the artifact together."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from spm_compress.calibration.collect import collect, load_or_collect
from spm_compress.calibration.runner import open_runner
from spm_compress.checkpoint.artifact import Artifact, FittedLayer, KeptTensor
from spm_compress.checkpoint.factory_source import FactorySource
from spm_compress.checkpoint.files import own_name, sha256_of
from spm_compress.checkpoint.modules import why_not_trainable
from spm_compress.checkpoint.neighbours import parts
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.roles import tensors_with_roles
from spm_compress.checkpoint.source import LazyTensors, Source, key_of
from spm_compress.checkpoint.tensor_info import TensorInfo
from spm_compress.compress.cache import FitCache
from spm_compress.compress.executors import Executor, Here
from spm_compress.compress.fitter import Fitter
from spm_compress.compress.job import Job, has_bias
from spm_compress.compress.ledger import Ledger
from spm_compress.compress.planned import Forecast, fit_planned, forecast
from spm_compress.compress.progress import Progress, Silent
from spm_compress.compress.selection import NONE, Selection, check_patterns, is_lookup, require_model, select
from spm_compress.compress.sequential import fit_sequential
from spm_compress.compress.settings import CompressSettings
from spm_compress.compress.staying import in_bits, require_blocks, staying, without_bits
from spm_compress.compress.ties import tied
from spm_compress.compress.weights import Weights
from spm_compress.errors import ArtifactError, SourceError, UsageError, first_line
from spm_compress.forms.candidates import candidates
from spm_compress.forms.form import numbers_of, stored_bytes
from spm_compress.forms.spm.form import SPM
from spm_compress.version import __version__

__all__ = [
    "Refit",
    "Selected",
    "artifact_of",
    "calibrated",
    "check_device",
    "fit_model",
    "plan_model",
    "select_jobs",
]


_MOMENTS = ".calibration.safetensors"
_VERSIONS = {"spm_compress": __version__, "torch": torch.__version__}


@dataclass(frozen=True)
class Selected:
    """The weights to fit, and name -> reason for every tensor that stays as it is."""

    jobs: tuple[Job, ...]
    kept: Mapping[str, str]


def select_jobs(weights: Weights, settings: CompressSettings) -> Selected:
    """Choose the weights and say how each is fitted.

    Raises UsageError if nothing is left to fit, unless `exclude` asked for that; SourceError naming a tensor that holds
    NaN.
    """
    source = weights.source
    infos = tensors_with_roles(source)
    known_parts = parts(source.tensors(), source.config)
    selection = select(
        infos,
        include=settings.include,
        exclude=(*settings.exclude, *settings.formless),
        min_features=settings.min_features,
        parts=known_parts,
    )
    without = without_bits(infos, selection.kept, known_parts, settings)
    stored = [
        name
        for name in selection.kept
        if name not in without and settings.bits_of(name, is_table=is_lookup(name, infos[name])) is not None
    ]
    require_model(source.path, infos, known_parts, selection, is_any_left=bool(selection.fitted or stored))
    _check_overrides(settings, selection, without)
    reasons = dict(selection.kept)
    smaller = []
    for name in selection.fitted:
        grown = None if settings.is_planned else _why_not_smaller(name, infos[name], settings)
        if grown:
            reasons[name] = grown
        else:
            smaller.append(name)
    found = tied(weights, infos, smaller, reasons, settings.include)
    in_fewer = staying(weights, infos, found.kept, without_bits(infos, found.kept, known_parts, settings), settings)
    if not found.weights and not in_fewer and not settings.exclude and not settings.formless:
        counts = "; ".join(sorted({f"{name}: {reason}" for name, reason in found.kept.items()})[:3])
        change = "give `dense_bits` or `table_bits`" if settings.include == (NONE,) else "change `stages`"
        raise UsageError(f"{source.path}: no weight is left to fit ({counts}, ...); loosen the selection or {change}")
    jobs = [
        Job(
            names,
            (infos[names[0]].shape[0], infos[names[0]].shape[1]),
            infos[names[0]].dtype,
            settings.fit_of(names[0]),
            sha256,
            has_bias=has_bias(source, infos, names),
            kernel_dims=infos[names[0]].kernel_dims,
        )
        for sha256, names in found.weights
    ]
    left_dense = [_left_dense(job, settings) for job in jobs] if settings.is_planned else []
    require_blocks(source.path, [*jobs, *in_fewer, *filter(None, left_dense)])
    taken = {name for job in in_fewer for name in job.names}
    kept = {name: reason for name, reason in found.kept.items() if name not in taken}
    return Selected((*jobs, *in_fewer), kept)


def _check_overrides(settings: CompressSettings, selection: Selection, without: Mapping[str, str]) -> None:
    """Raise UsageError for settings that no weight takes. What stays takes bits, and no other settings."""
    for override in settings.overrides:
        has_bits = "store" in dict(override.values)
        reasons = without if has_bits else selection.kept
        takers = [*selection.fitted, *(name for name in selection.kept if name not in reasons)]
        refused = next((name for name in reasons if fnmatchcase(name, override.pattern)), None)
        if refused is not None and not any(fnmatchcase(name, override.pattern) for name in takers):
            what = "stored in fewer bits" if has_bits else "fitted"
            raise UsageError(
                f"`overrides` {override.pattern!r}: matches nothing that can be {what} ({refused}: {reasons[refused]})"
            )
        check_patterns("`overrides`", [override.pattern], takers)


def _left_dense(job: Job, settings: CompressSettings) -> Job | None:
    """Return the job of a weight that a plan leaves dense, if that is stored in fewer bits."""
    return in_bits(job, settings.bits_of(job.names[0], is_table=False))


def fit_model(
    source: Source,
    settings: CompressSettings,
    *,
    beside: Path,
    device: str = "cpu",
    progress: Progress | None = None,
    data: Path | None = None,
    cache: Path | None = None,
    ledger: Ledger | None = None,
    executor: Executor | None = None,
    refit: Refit | None = None,
) -> Artifact:
    """Fit an SPM to every selected weight of the source and return the artifact.

    beside: the folder that the artifact is going to lie in; the source's path is recorded relative to it.
    data: calibration data (`calibration.read_batches`): weights are then fitted to the least error of their outputs.
    cache: folder for what costs time and may be asked for again: moments of the inputs, fits at several sizes.
    ledger: entered; what it holds of this very fit is not made again. executor: who does the work, `Here` if None.
    refit: fit some weights of an earlier artifact anew, and take the others from it.
    Deterministic for one machine: same source, settings and seed, same artifact, interrupted or not.

    Raises UsageError for a pattern without a match, FitError or SourceError naming the tensor that cannot be fitted,
    SourceError if the model changes meanwhile, ArtifactError for the ledger of another fit.
    """
    progress = progress or Silent()
    files = source.hashes()
    weights = Weights(source, is_reused=settings.is_planned)
    selected = select_jobs(weights, settings)
    if refit is not None:
        selected = refit.of(selected, files, key_of(source))
    fits = FitCache(cache)
    if ledger is not None and not settings.is_planned:  # sizes that were tried for one target serve the next
        fits = ledger.begin(_recipe(files, key_of(source), settings, data, device, refit))
    if not settings.is_sequential:
        selected = calibrated(source, selected, data, cache)
    fitter = Fitter(weights, device, progress, fits, executor or Here())
    progress.begin(len(selected.jobs))
    reasons = dict(selected.kept)
    layers: list[FittedLayer]
    curves = None
    free, in_fewer = ([job for job in selected.jobs if job.stays == stays] for stays in (False, True))
    if settings.is_planned:
        planned = fit_planned(fitter, free, settings)
        layers = list(planned.layers.values())
        curves = {
            choice.curve.name: [asdict(point) for point in choice.curve.points] for choice in planned.plan.choices
        }
        by_name = {job.names[0]: job for job in selected.jobs}
        for choice in planned.plan.choices:
            if choice.point is None:
                job = by_name[choice.curve.name]
                dense = _left_dense(job, settings)
                in_fewer += [] if dense is None else [dense]
                reasons.update(dict.fromkeys(job.names, choice.reason))
    elif settings.is_sequential:
        if data is None:
            raise UsageError("`is_sequential` fits each layer to the inputs that it gets: give them with `data`")
        layers = list(fit_sequential(fitter, free, data))
        in_fewer = list(calibrated(source, Selected(tuple(in_fewer), {}), data, cache).jobs)
    else:
        layers = list(fitter.fit(free))
    layers += fitter.fit(in_fewer)
    if source.hashes() != files:
        raise SourceError(f"{source.path}: changed while it was being fitted; nothing was written; run fit again")
    said = {**settings.to_json(), "calibration": _named(data)}
    if refit is not None:
        layers += refit.others
        said["refit"] = refit.patterns
    return replace(artifact_of(source, files, said, layers, reasons, beside), curves=curves)


@dataclass(frozen=True)
class Refit:
    """An artifact of the same model, and globs on the names of those of its weights that are to be fitted anew."""

    before: Artifact
    patterns: tuple[str, ...]

    @property
    def others(self) -> list[FittedLayer]:
        """The layers that stay."""
        return [layer for layer in self.before.layers if not any(map(self._is_meant, layer.names))]

    def of(self, selected: Selected, files: Mapping[str, str], key: str | None = None) -> Selected:
        """Return what is left to fit, and why every other tensor stays.

        Raises UsageError for a glob without a match, ArtifactError for the artifact of another model or one that has
        been trained since: its weights go together.
        """
        if (self.before.source["files"], self.before.source.get("key")) != (files, key):
            raise ArtifactError("`refit`: the artifact belongs to another model; fit this one whole")
        if self.before.recovery is not None:
            raise ArtifactError("`refit`: the artifact was trained after its fit; refit the one that it came from")
        check_patterns("`refit`", self.patterns, [name for job in selected.jobs for name in job.names])
        jobs = tuple(job for job in selected.jobs if any(map(self._is_meant, job.names)))
        return Selected(jobs, {**selected.kept, **{each.name: each.reason for each in self.before.kept}})

    def _is_meant(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.patterns)


def _recipe(
    files: Mapping[str, str],
    key: str | None,
    settings: CompressSettings,
    data: Path | None,
    device: str,
    refit: Refit | None,
) -> dict[str, Any]:
    """Return all that the numbers of a fit depend on."""
    return {
        "model": files,
        "key": key,
        "settings": settings.to_json(),
        "calibration": _named(data),
        "refit": None if refit is None else refit.patterns,
        "device": device,
        "versions": _VERSIONS,
    }


def plan_model(
    source: Source,
    settings: CompressSettings,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
    data: Path | None = None,
    cache: Path | None = None,
) -> tuple[Selected, Forecast]:
    """Return what `fit_model` would select, and its plan as short descents predict it. Raises as `fit_model`."""
    weights = Weights(source, is_reused=True)
    selected = calibrated(source, select_jobs(weights, settings), data, cache)
    fitter = Fitter(weights, device, progress or Silent(), FitCache(cache))
    return selected, forecast(fitter, [job for job in selected.jobs if not job.stays], settings)


def calibrated(source: Source, selected: Selected, data: Path | None, cache: Path | None) -> Selected:
    """Return the jobs with the moments of their inputs, where the model can be watched."""
    if data is None:
        return selected
    watched = [job for job in selected.jobs if not job.is_table]  # a table's rows are looked up
    names = [name for job in watched for name in job.names]
    if not names:
        return selected
    if cache is None:
        moments = collect(open_runner(source, data), names)
    else:
        moments = load_or_collect(source, data, names, cache / f"{own_name(source.path)}{_MOMENTS}")
    if not moments:
        raise UsageError(f"{source.path}: no weight's input can be watched while it runs on {data}; fit without it")
    jobs = [
        job if job.is_table else job.watched(next((moments[name] for name in job.names if name in moments), None))
        for job in selected.jobs
    ]
    for job in jobs:
        if job.moments is not None and len(job.moments.mean) != job.shape[1]:
            raise SourceError(
                f"{data}: gives {job.names[0]} inputs of {len(job.moments.mean)} features, not {job.shape[1]}; "
                "give arrays of the shapes that the model takes"
            )
    return Selected(tuple(jobs), selected.kept)


def _named(data: Path | None) -> dict[str, str | None] | None:
    return None if data is None else {"file": data.name, "sha256": sha256_of(data) if data.is_file() else None}


def artifact_of(
    source: Source,
    files: Mapping[str, str],
    settings: Mapping[str, object],
    layers: Sequence[FittedLayer],
    reasons: Mapping[str, str],
    beside: Path,
) -> Artifact:
    """Return the artifact of a source with these layers; every other tensor stays as it is.

    files: their digests; settings: of the manifest; reasons: name -> why a tensor stays; beside: as in `fit_model`.
    """
    infos = source.tensors()
    fitted = {name for layer in layers for name in layer.names}
    tensors = LazyTensors(source, (name for name in infos if name not in fitted))
    return Artifact(
        source={"path": os.path.relpath(source.path, beside), "files": dict(files), **_known(source, infos, fitted)},
        settings=settings,
        versions=_VERSIONS,
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        kept=tuple(
            KeptTensor(name, infos[name].shape, infos[name].dtype, tensor.nbytes, reasons[name])
            for name, tensor in tensors.items()
        ),
        tensors=tensors,
    )


def _known(source: Source, names: Iterable[str], fitted: Collection[str]) -> dict[str, Any]:
    """Return what else has to be known of the source to build or write it again."""
    turned = [name for name in names if name in source.input_first]
    found: dict[str, Any] = {"factory": source.factory} if isinstance(source, FactorySource) else {}
    key, is_onnx = key_of(source), source.graph is not None
    if key is not None:
        found["key"] = key
    if is_onnx or source.path.suffix == ".onnx":  # the name alone does not say
        found["onnx"] = is_onnx
    why = why_not_trainable(source, fitted)
    found["live"] = why is None
    if why is not None and (is_onnx or isinstance(source, ProgramSource)):
        found["untrainable"] = why
    return {**found, "input_first": turned} if turned else found


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch does not know or that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"`device` {device}: cannot be used ({first_line(error)}); use `device` cpu") from error


def _why_not_smaller(name: str, info: TensorInfo, settings: CompressSettings) -> str | None:
    fit = settings.fit_of(name)
    out_features, in_features = info.shape
    if SPM.kind in fit.forms:
        smallest, size = fit.reference(out_features, in_features), f"in {fit.stages} stages"
    else:
        tried = candidates(fit, out_features, in_features)
        if not tried:
            return f"no {' or '.join(fit.forms)} is as small as {fit.stages} stages"
        smallest, size = min(tried, key=numbers_of), f"as {' or '.join(fit.forms)}"
    stored = stored_bytes(smallest, fit.store)
    return None if stored < info.bytes else f"would not get smaller: {stored} bytes {size}, {info.bytes} dense"
