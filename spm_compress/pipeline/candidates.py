"""What every weight could become: forms, sizes and bits, and the error of each before any is chosen.

1. A dense map in few bits: its error is that of a sample of its rows, rounded as they are, as a scale spans one row at
   most. The fit of what is chosen hands errors on and ends lower.
2. A structured form has to be fitted to know. It is tried where dense maps cannot get as small as is asked, and on wide
   weights, where it runs faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import Tensor

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.codecs import Codec, StoredArray, bits_text, parse_bits
from spm_compress.compress.fitter import Fitter
from spm_compress.compress.job import Job
from spm_compress.compress.model import Selected, calibrated, select_jobs
from spm_compress.compress.selection import NONE, NOT_INCLUDED, check_patterns
from spm_compress.compress.settings import CompressSettings
from spm_compress.compress.staying import in_bits
from spm_compress.compress.weights import Weights
from spm_compress.export.probe import Replacement
from spm_compress.fitting.objective import output_error, regularized
from spm_compress.forms.candidates import candidates as forms_of
from spm_compress.forms.candidates import check_forms
from spm_compress.forms.dense import Dense
from spm_compress.forms.form import form_text, stored_bytes
from spm_compress.forms.registry import forms
from spm_compress.forms.settings import EFFORTS, FitSettings
from spm_compress.forms.spm.form import SPM
from spm_compress.forms.sum import Sum

__all__ = ["Candidate", "PlanSettings", "Weight", "fitted", "selected_jobs", "weights_with_candidates"]

# Finer steps than these change the bytes of a file by less than a plan of many weights evens out.
_DENSE_BITS = ("8", "6", "5", "4/32", "4", "3/32", "3", "2/32", "2", "1.6", "1")
# Stages of chains, and by their size of other forms.
_STAGES = (10, 20, 40)
# Angles in 8 and 5 bits, factors in 8 and 4: where each has its least error for its bytes (docs/few-bits.md).
_FORM_BITS: Mapping[str, tuple[str, ...]] = {SPM.kind: ("8", "5")}
_OTHERS_BITS = ("8", "4")
_ROWS = 64


@dataclass(frozen=True)
class PlanSettings:
    """What may be chosen from: kinds of forms and bits as `parse_bits` takes them, all of them where none are named.

    include, exclude, min_features: as in CompressSettings; wide: least features of a weight for which structured forms
    are tried whatever the budget.
    """

    forms: tuple[str, ...] = ()
    bits: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_features: int = 32
    wide: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        check_forms(self.forms)
        for text in self.bits:
            parse_bits(text)


@dataclass(frozen=True)
class Candidate:
    """One thing that a weight could become. bytes: stored; error: relative, of the outputs where inputs are known.

    layer: the fit, where there had to be one.
    """

    job: Job
    bytes: int
    error: float
    layer: FittedLayer | None = None

    @property
    def kind(self) -> str:
        """The kind of its form."""
        return self.job.fit.forms[0]

    @property
    def text(self) -> str:
        """Form and bits in a few words."""
        bits = f"{bits_text(self.job.fit.store)} bits"
        if self.layer is None:
            return f"{self.kind} {bits}"
        return f"{form_text(self.layer.form.kind, self.layer.form.summary)}, {bits}"

    def replacement(self, weights: Weights) -> Replacement:
        """Return what the error is of, with the correction of the bias that goes with it."""
        if self.layer is not None:
            return Replacement(self.layer.operator.to_dense(), self.layer.bias_correction)
        weight = weights.read(self.job.names[0]).float()
        matrix = StoredArray.of(self.job.fit.store, weight).decoded()
        return Replacement(matrix, self.job.bias_correction(weight, matrix))


@dataclass(frozen=True)
class Weight:
    """A weight and what it could become, by rising bytes. job: as a dense map that stays."""

    job: Job
    candidates: tuple[Candidate, ...]

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.job.names[0]


def selected_jobs(weights: Weights, settings: PlanSettings, data: Path, cache: Path) -> Selected:
    """Return the weights that may change, watched on calibration data. Raises what `fit_model` raises."""
    largest = parse_bits("8")
    asked = CompressSettings(
        include=(NONE,), exclude=settings.exclude, min_features=settings.min_features, dense=largest, table=largest
    )
    return calibrated(weights.source, _included(select_jobs(weights, asked), settings), data, cache)


def weights_with_candidates(
    fitter: Fitter, selected: Selected, settings: PlanSettings, *, below_one_bit: bool
) -> tuple[Weight, ...]:
    """Return what every weight could become. below_one_bit: whether dense maps cannot get as small as is asked."""
    found: dict[str, list[Candidate]] = {job.names[0]: [] for job in selected.jobs}
    structured = []
    for job in selected.jobs:
        kinds = settings.forms or tuple(forms())
        if Dense.kind in kinds or job.is_table:
            found[job.names[0]] += _dense(job, fitter.weights, settings.bits or _DENSE_BITS)
        if not job.is_table and (settings.forms or below_one_bit or min(job.shape) >= settings.wide):
            structured += [each for kind in kinds for each in _structured(job, kind, settings.seed)]
    for job, layer in fitted(fitter, structured):
        error = layer.error if layer.output_error is None else layer.output_error
        found[layer.name].append(Candidate(job, layer.stored_bytes, error, layer))
    return tuple(
        Weight(job, tuple(sorted(found[job.names[0]], key=lambda each: (each.bytes, each.error))))
        for job in selected.jobs
    )


def fitted(fitter: Fitter, jobs: Sequence[Job]) -> Iterator[tuple[Job, FittedLayer]]:
    """Fit jobs, of which several may be of one weight, and yield each with its layer."""
    left = list(jobs)
    fitter.progress.begin(len(jobs))
    while left:
        taken: dict[str, Job] = {}
        for job in left:
            taken.setdefault(job.names[0], job)
        for layer in fitter.fit(list(taken.values())):
            yield taken[layer.name], layer
        left = [job for job in left if taken[job.names[0]] is not job]


def _included(selected: Selected, settings: PlanSettings) -> Selected:
    if not settings.include:
        return selected
    check_patterns("`include`", settings.include, [name for job in selected.jobs for name in job.names])
    chosen = [
        job for job in selected.jobs if any(fnmatchcase(name, glob) for name in job.names for glob in settings.include)
    ]
    left = {name: NOT_INCLUDED for job in selected.jobs if job not in chosen for name in job.names}
    return Selected(tuple(chosen), {**selected.kept, **left})


def _dense(job: Job, weights: Weights, bits: Sequence[str]) -> Iterator[Candidate]:
    weight = weights.read(job.names[0])
    rows = weight[:: max(1, len(weight) // _ROWS)].float()
    metric = None if job.moments is None else regularized(job.moments.covariance, job.moments.rows)
    for codec in map(parse_bits, bits):
        kept = in_bits(job, codec) if codec.fits(job.shape) else None
        if kept is None:
            continue
        form = Dense(job.shape[1], job.shape[0])
        raised = 4 * job.shape[0] if job.moments is not None and job.has_bias else 0
        yield Candidate(kept, stored_bytes(form, codec) + raised, _rounding_error(rows, codec, metric))


def _rounding_error(rows: Tensor, codec: Codec, metric: Tensor | None) -> float:
    rounded = StoredArray.of(codec, rows).decoded()
    if metric is not None:
        return output_error(rows, rounded, metric)
    norm = float(rows.norm())
    return float((rows - rounded).norm()) / norm if norm else 0.0


def _structured(job: Job, kind: str, seed: int) -> Iterator[Job]:
    if kind in (Dense.kind, Sum.kind):
        return
    for stages in _STAGES:
        for text in _FORM_BITS.get(kind, _OTHERS_BITS):
            fit = FitSettings(stages=stages, forms=(kind,), store=parse_bits(text), seed=seed, **EFFORTS["fast"])
            own = forms_of(fit, *job.shape)
            if own and min(stored_bytes(form, fit.store) for form in own) < job.dense_bytes:
                yield replace(job, fit=fit, stays=False)
