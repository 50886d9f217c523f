"""A whole model before any fit: what its weights would lose at a few sizes, from spectra, bounds and short probes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spm_compress.checkpoint.neighbours import parts
from spm_compress.checkpoint.roles import tensors_with_roles
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.tensor_info import DTYPES, TensorInfo
from spm_compress.compress.selection import require_model, select
from spm_compress.compress.ties import tied
from spm_compress.compress.verdict import verdict
from spm_compress.compress.weights import Weights
from spm_compress.errors import UsageError
from spm_compress.fitting.spectrum import spectra
from spm_compress.forms.fit import fit_matrices
from spm_compress.forms.form import stored_bytes
from spm_compress.forms.settings import FitSettings
from spm_compress.forms.spm.bound import chain_bound
from spm_compress.forms.spm.closed_form import ClosedForm, closed_forms

__all__ = ["SHARES", "Inspection", "LayerInspection", "Left", "Probe", "SizeInspection", "inspect_model"]

# Sizes to look at, as shares of a weight's bytes.
SHARES = (0.03, 0.06, 0.12)
# `fit` stores float32 unless told otherwise, so both forms are counted in it.
_ITEM_BYTES = 4
# Matrices of one shape are taken together up to this many values, 64 MB in float64.
_BATCH_VALUES = 1 << 23
# The closed form holds a few squares of the larger width in float64: 134 MB each at 4096.
_WIDEST_CLOSED_FORM = 4096
# Multiply-adds of a descent step above which a probe takes longer than an inspection should (20 s on two cores).
_MOST_WORK = 1e9
# A descent with fewer steps for every stage ends far from where a fit does, and would mislead: MiniLM 384x384 in 45
# stages is at 0.877 after 40 steps and at 0.767 after 400, the SVD of that size at 0.814.
_STEPS_A_STAGE = 2.5


@dataclass(frozen=True)
class SizeInspection:
    """One weight at one size: what the truncated SVD reaches, and what no chain of `fit` can.

    share, bytes: the size asked for, in float32 numbers against the weight's own dtype. svd_error: of all those bytes.
    stages, stored_bytes: the longest chain of `fit` that is not larger, None and 0 if one stage already is.
    bound: the relative error that this chain cannot go below; 0.0 where nothing is known to limit it.
    """

    share: float
    bytes: int
    svd_error: float
    stages: int | None
    stored_bytes: int
    bound: float | None


@dataclass(frozen=True)
class LayerInspection:
    """One weight that `fit` would take. All errors are relative Frobenius errors.

    effective_rank: exp of the entropy of the squared singular values; energy_1, energy_10: what the first 1 % and
    10 % of the singular values hold of the squared norm; decay: the first over the median singular value (inf
    for a low rank); rank: singular values above the rounding of the dtype. closed_form: before any
    descent, None for weights too wide for it, and then also svd_at_closed_form, the SVD of as many numbers.
    """

    name: str
    shape: tuple[int, int]
    dtype: str
    bytes: int
    root_mean_square: float
    rank: int
    effective_rank: float
    energy_1: float
    energy_10: float
    decay: float
    sizes: tuple[SizeInspection, ...]
    closed_form: ClosedForm | None
    svd_at_closed_form: float | None
    verdict: str


@dataclass(frozen=True)
class Probe:
    """A short descent on one weight, the one with the median effective rank of its shape.

    layers: weights of this shape; error: after `steps` steps, so `fit` with its 600 goes lower; None with the reason
    where it was not tried. svd_error: of the same weight in as many numbers.
    """

    shape: tuple[int, int]
    layers: int
    name: str
    share: float
    stages: int
    steps: int
    stored_bytes: int
    error: float | None
    svd_error: float
    reason: str | None


@dataclass(frozen=True)
class Left:
    """A tensor that `fit` would leave as it is, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


@dataclass(frozen=True)
class Inspection:
    """The whole model: weights in the order of their names, probes by shape, and the tensors that stay dense."""

    layers: tuple[LayerInspection, ...]
    probes: tuple[Probe, ...]
    kept: tuple[Left, ...]


Told = Callable[[int, int, str], None]
"""Called with how many weights of how many are done, and what is taken in hand next."""


def inspect_model(
    source: Source,
    *,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    min_features: int = 32,
    fit: FitSettings | None = None,
    probe_steps: int = 60,
    progress: Told | None = None,
) -> Inspection:
    """Look at every weight that `fit_model` would be offered, without fitting it; tied names are one weight.

    include, exclude, min_features: as in `select`. fit: mixer, schedule, block and seed of the chains that bounds and
    probes are about; its stages follow from the sizes. probe_steps: length of the one descent for every shape and
    size (a chain needs 2.5 steps a stage to be probed); 0 leaves probes out. Deterministic for one machine.

    Raises UsageError if no weight is selected, SourceError naming a tensor with NaN or infinite values.
    """
    told = progress or (lambda done, total, what: None)
    fit = fit or FitSettings()
    infos = tensors_with_roles(source)
    found = parts(source.tensors(), source.config)
    selection = select(infos, include=include, exclude=exclude, min_features=min_features, parts=found)
    require_model(source.path, infos, found, selection, is_any_left=bool(selection.fitted))
    held = Weights(source, is_reused=True)
    found_tied = tied(held, infos, selection.fitted, selection.kept, include)
    chosen = [names[0] for _, names in found_tied.weights]
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(found_tied.kept.items())[:3])
        raise UsageError(f"{source.path}: no weight to inspect ({reasons}, ...); loosen the selection")
    total = len(chosen)
    layers: list[LayerInspection] = []
    chains: dict[tuple[tuple[int, int], str], tuple[_Size, ...]] = {}
    for names in _batches({name: infos[name] for name in chosen}):
        info = infos[names[0]]
        others = f" +{len(names) - 1}" if len(names) > 1 else ""
        told(len(layers), total, f"{names[0]}{others} {info.shape[0]}x{info.shape[1]}")
        weights = [held.read(name) for name in names]
        key = _shape(info), info.dtype
        if key not in chains:
            chains[key] = _sizes(info, fit)
        layers += _inspected(names, info, weights, chains[key], fit)
    layers.sort(key=lambda layer: layer.name)
    probes = list(_probes(held, layers, fit, probe_steps, told)) if probe_steps else []
    kept = [Left(name, infos[name].shape, infos[name].dtype, reason) for name, reason in found_tied.kept.items()]
    return Inspection(tuple(layers), tuple(probes), tuple(kept))


@dataclass(frozen=True)
class _Size:
    """A share of the bytes, and the longest chain of `fit` in it; 0 stages if one stage is larger already."""

    share: float
    bytes: int
    stages: int
    stored_bytes: int


def _shape(info: TensorInfo) -> tuple[int, int]:
    return info.shape[0], info.shape[1]


def _batches(infos: Mapping[str, TensorInfo]) -> Iterator[list[str]]:
    alike: dict[tuple[tuple[int, int], str], list[str]] = {}
    for name, info in infos.items():
        alike.setdefault((_shape(info), info.dtype), []).append(name)
    for (shape, _), names in alike.items():
        size = max(1, _BATCH_VALUES // math.prod(shape))
        for start in range(0, len(names), size):
            yield names[start : start + size]


def _sizes(info: TensorInfo, fit: FitSettings) -> tuple[_Size, ...]:
    def stored(stages: int) -> int:
        return stored_bytes(replace(fit, stages=stages).spm(*_shape(info)))

    sizes = []
    for share in SHARES:
        budget = int(share * info.bytes)
        # Every stage stores min(shape) numbers or more, so `exceeds` is too many; then halve the interval.
        fits, exceeds = 0, budget // (_ITEM_BYTES * min(info.shape)) + 1
        while exceeds - fits > 1:
            middle = (fits + exceeds) // 2
            fits, exceeds = (middle, exceeds) if stored(middle) <= budget else (fits, middle)
        sizes.append(_Size(share, budget, fits, stored(fits) if fits else 0))
    return tuple(sizes)


def _inspected(
    names: Sequence[str], info: TensorInfo, weights: Sequence[Tensor], sizes: Sequence[_Size], fit: FitSettings
) -> Iterator[LayerInspection]:
    batch = torch.stack(list(weights)).double()
    bounds = [
        chain_bound(batch, replace(fit, stages=size.stages).spm(*_shape(info))).tolist() if size.stages else None
        for size in sizes
    ]
    epsilon = torch.finfo(DTYPES.get(info.dtype, torch.float32)).eps
    for k, (name, spectrum) in enumerate(zip(names, spectra(batch), strict=True)):
        looked_at = tuple(
            SizeInspection(
                share=size.share,
                bytes=size.bytes,
                svd_error=spectrum.svd_error(size.bytes / _ITEM_BYTES),
                stages=size.stages or None,
                stored_bytes=size.stored_bytes,
                bound=None if bound is None else bound[k],
            )
            for size, bound in zip(sizes, bounds, strict=True)
        )
        rank, form = spectrum.rank(epsilon), _closed_form(batch[k])
        svd = None if form is None else spectrum.svd_error(form.numbers)
        yield LayerInspection(
            name=name,
            shape=_shape(info),
            dtype=info.dtype,
            bytes=info.bytes,
            root_mean_square=spectrum.root_mean_square,
            rank=rank,
            effective_rank=spectrum.effective_rank,
            energy_1=spectrum.energy(0.01),
            energy_10=spectrum.energy(0.1),
            decay=spectrum.decay,
            sizes=looked_at,
            closed_form=form,
            svd_at_closed_form=svd,
            verdict=verdict(spectrum, rank, [(size.share, size.svd_error) for size in looked_at], form),
        )


def _closed_form(weight: Tensor) -> ClosedForm | None:
    if max(weight.shape) > _WIDEST_CLOSED_FORM:
        return None
    return closed_forms(weight[None])[0]


def _probes(
    held: Weights, layers: Sequence[LayerInspection], fit: FitSettings, steps: int, told: Told
) -> Iterator[Probe]:
    alike: dict[tuple[tuple[int, int], str], list[LayerInspection]] = {}
    for layer in layers:
        alike.setdefault((layer.shape, layer.dtype), []).append(layer)
    for (shape, _), group in alike.items():
        middle = sorted(group, key=lambda layer: layer.effective_rank)[len(group) // 2]
        told(len(layers), len(layers), f"probing {middle.name} {shape[0]}x{shape[1]}")
        weight = held.read(middle.name)[None]
        (spectrum,) = spectra(weight)
        for size in middle.sizes:
            if size.stages is None:
                continue
            settings = replace(fit, stages=size.stages, steps=steps)
            reason = _too_much(settings, shape)
            if not spectrum.norm:
                reason = "all zeros"
            yield Probe(
                shape=shape,
                layers=len(group),
                name=middle.name,
                share=size.share,
                stages=size.stages,
                steps=0 if reason else steps,
                stored_bytes=size.stored_bytes,
                error=None if reason else fit_matrices(weight, settings)[0].error,
                svd_error=spectrum.svd_error(size.stored_bytes / _ITEM_BYTES),
                reason=reason,
            )


def _too_much(settings: FitSettings, shape: tuple[int, int]) -> str | None:
    """Return why a descent would end too early or take minutes; a group costs one batched product of its blocks."""
    if settings.steps < _STEPS_A_STAGE * settings.stages:
        return f"{settings.steps} steps are too few for {settings.stages} stages"
    structure = settings.spm(*shape)
    work = sum(chain.width * min(shape) * group.block for chain in structure.chains for group in chain.groups)
    if work <= _MOST_WORK:
        return None
    return f"{work:.1e} multiply-adds a step are too many for a probe"
