"""A whole model: select, fit, measure, and put the artifact together."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from spm_compress.checkpoint.artifact import Artifact, FittedLayer, KeptTensor
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.tensor_info import DTYPES, TensorInfo
from spm_compress.compress.selection import select
from spm_compress.errors import FitError, SourceError, UsageError
from spm_compress.fitting.fit import fit_matrices, relative_error
from spm_compress.fitting.settings import FitResult, FitSettings, StepReport
from spm_compress.fitting.truncated_svd import svd_error
from spm_compress.operator.canonical import to_canonical
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer
from spm_compress.version import __version__

__all__ = ["CompressSettings", "Progress", "Silent", "batches", "check_device", "fit_model"]

# Matrices of one shape are fitted together up to this many values. MiniLM's 36 matrices, 100 steps: 19.1 s at
# 2**18, 11.5 s at 2**20, 10.6 s at 2**22, which takes four times the memory.
_BATCH_VALUES = 1 << 20
# Float16 may raise a layer's error by this factor, and by its own rounding, before float32 is kept.
_MOST_HARM, _ROUNDING = 1.02, 1e-3


@dataclass(frozen=True)
class CompressSettings:
    """How a model is compressed: the fit, which tensors (see `select`), and the dtype that is stored."""

    fit: FitSettings = field(default_factory=FitSettings)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_features: int = 32
    store: torch.dtype = torch.float32


class Progress(Protocol):
    """Hears how far a fit is. All calls come from the thread that fits."""

    def begin(self, layers: int) -> None:
        """The number of weights to fit is known."""

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        """These weights, of one shape, are taken in hand."""

    def step(self, report: StepReport) -> None:
        """The batch in hand has come this far."""

    def layer(self, layer: FittedLayer) -> None:
        """One weight is done."""


class Silent:
    """A Progress that tells nobody."""

    def begin(self, layers: int) -> None:
        """Ignore."""

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        """Ignore."""

    def step(self, report: StepReport) -> None:
        """Ignore."""

    def layer(self, layer: FittedLayer) -> None:
        """Ignore."""


def fit_model(
    source: Source, settings: CompressSettings, *, beside: Path, device: str = "cpu", progress: Progress | None = None
) -> Artifact:
    """Fit an SPM to every selected weight of the source and return the artifact.

    beside: the folder that the artifact is going to lie in; the source's path is recorded relative to it.
    Deterministic for one machine: same source, settings and seed, same artifact.

    Raises UsageError if nothing is left to fit, FitError or SourceError naming the tensor that cannot be.
    """
    progress = progress or Silent()
    infos = source.tensors()
    selection = select(infos, include=settings.include, exclude=settings.exclude, min_features=settings.min_features)
    reasons = dict(selection.kept)
    smaller = []
    for name in selection.fitted:
        grown = _why_not_smaller(infos[name], settings)
        if grown:
            reasons[name] = grown
        else:
            smaller.append(name)
    tied = _tied(source, smaller)
    if not tied:
        counts = "; ".join(sorted({f"{name}: {reason}" for name, reason in reasons.items()})[:3])
        raise UsageError(
            f"{source.path}: no weight is left to fit ({counts}, ...); loosen the selection or use fewer stages"
        )
    progress.begin(len(tied))
    layers = list(_fit_layers(source, infos, tied, settings, device, progress))
    fitted = {name for layer in layers for name in layer.names}
    tensors = {name: source.read(name) for name in infos if name not in fitted}
    return Artifact(
        source={"path": os.path.relpath(source.path, beside), "files": source.hashes()},
        settings=_settings_json(settings),
        versions={"spm_compress": __version__, "torch": torch.__version__},
        layers=tuple(sorted(layers, key=lambda layer: layer.name)),
        kept=tuple(
            KeptTensor(name, infos[name].shape, infos[name].dtype, tensor.nbytes, reasons[name])
            for name, tensor in tensors.items()
        ),
        tensors=tensors,
    )


def check_device(device: str) -> None:
    """Raise UsageError for a device that torch does not know or that is not there."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise UsageError(f"--device {device}: cannot be used ({first_line}); use --device cpu") from error


def _why_not_smaller(info: TensorInfo, settings: CompressSettings) -> str | None:
    structure = settings.fit.stored_structure(*info.shape, half=settings.store == torch.float16)
    stored = structure.stored_bytes(settings.store.itemsize)
    if stored < info.bytes:
        return None
    return f"would not get smaller: {stored} bytes in {structure.stages} stages, {info.bytes} dense"


def _tied(source: Source, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Group names whose tensors hold the same values, in the order of the first name of each group."""
    groups: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for name in names:
        weight = source.read(name)
        if not bool(weight.isfinite().all()):
            bad = int((~weight.isfinite()).sum())
            raise SourceError(
                f"{source.place(name)}: tensor {name!r} holds {bad} NaN or infinite values; "
                f"repair the model or leave it out with --exclude {name!r}"
            )
        groups.setdefault((tuple(weight.shape), digest(weight)), []).append(name)
    return [tuple(group) for group in groups.values()]


def digest(weight: Tensor) -> str:
    """Return the SHA-256 of the values as float32 in C order: how a weight is found again in a graph."""
    return hashlib.sha256(weight.float().contiguous().numpy().tobytes()).hexdigest()


def batches(shapes: Mapping[str, tuple[int, int]]) -> Iterator[list[str]]:
    """Yield names in batches of one shape, each of a size that is worth fitting together."""
    by_shape: dict[tuple[int, int], list[str]] = {}
    for name, shape in shapes.items():
        by_shape.setdefault(shape, []).append(name)
    for (m, n), names in by_shape.items():
        size = max(1, _BATCH_VALUES // (m * n))
        for start in range(0, len(names), size):
            yield names[start : start + size]


def _fit_layers(
    source: Source,
    infos: Mapping[str, TensorInfo],
    tied: Sequence[tuple[str, ...]],
    settings: CompressSettings,
    device: str,
    progress: Progress,
) -> Iterator[FittedLayer]:
    aliases = {names[0]: names for names in tied}
    for batch in batches({name: (infos[name].shape[0], infos[name].shape[1]) for name in aliases}):
        weights = torch.stack([source.read(name).float() for name in batch])
        progress.batch(batch, (weights.shape[1], weights.shape[2]))
        try:
            results = fit_matrices(weights.to(device), settings.fit, progress.step)
        except FitError as error:
            raise FitError(f"{', '.join(batch)}: {error}") from error
        for name, weight, result in zip(batch, weights, results, strict=True):
            layer = _measured(aliases[name], infos[name].dtype, weight, result, settings)
            progress.layer(layer)
            yield layer


def _measured(
    names: tuple[str, ...], dtype: str, weight: Tensor, result: FitResult, settings: CompressSettings
) -> FittedLayer:
    spm, error = stored_as(result, weight, settings.store)
    return FittedLayer(
        names=names,
        shape=(weight.shape[0], weight.shape[1]),
        dtype=dtype,
        sha256=digest(weight),
        error=error,
        svd_error=svd_error(weight, spm.parameter_count),
        steps=result.steps,
        restarts=result.restarts,
        start=result.start,
        spm=spm,
    )


def stored_as(result: FitResult, weight: Tensor, store: torch.dtype) -> tuple[SPM, float]:
    """Return the operator with its mixers in the stored dtype (diagonals stay float32), and its error there.

    An operator that float16 would harm stays float32, and its bytes count as such.
    """
    if store == torch.float32:
        return result.spm, result.error
    spm = result.spm
    if spm.structure.mixer is Mixer.CANONICAL:
        spm = to_canonical(spm, half=True)
    rounded = SPM(
        spm.structure,
        [{name: array if name == "diagonals" else array.to(store) for name, array in d.items()} for d in spm.numbers],
    )
    error = relative_error(weight, rounded)
    return (rounded, error) if error <= _MOST_HARM * result.error + _ROUNDING else (result.spm, result.error)


def _settings_json(settings: CompressSettings) -> dict[str, object]:
    fit = settings.fit
    return {
        "stages": fit.stages,
        "mixer": fit.mixer.value if fit.mixer else "auto",
        "low_rank": "auto" if fit.rank is None else fit.rank,
        "schedule": fit.schedule.value,
        "block": fit.block,
        "steps": fit.steps,
        "learning_rate": fit.learning_rate,
        "seed": fit.seed,
        "include": settings.include,
        "exclude": settings.exclude,
        "min_features": settings.min_features,
        "store": next(name for name, dtype in DTYPES.items() if dtype == settings.store),
    }
