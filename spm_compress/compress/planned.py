"""Sizes chosen weight by weight: fit each at several, keep those fits, and take the best plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.compress.fitter import Fitter
from spm_compress.compress.job import Job
from spm_compress.compress.plan import Choice, Curve, Plan, Point, check_budget, within_budget, within_error
from spm_compress.compress.settings import CompressSettings
from spm_compress.forms.candidates import candidates
from spm_compress.forms.dense import Dense
from spm_compress.forms.form import stored_bytes
from spm_compress.forms.settings import FitSettings
from spm_compress.forms.spm.form import SPM

__all__ = ["Forecast", "Planned", "fit_planned", "forecast"]

# Sizes double from one group of stages on. For a budget they are fitted up to this share of the dense bytes, the same
# whatever the budget, so that the next one costs no fit; for a large budget up to this many times its share.
_USUAL, _REACH = 0.12, 2
# No chain of more than this share of the dense bytes is tried: int8 has an error of 0.01 at half as much.
_LARGEST = 0.5
# The size of a dense map, whose numbers a codec stores; others are numbers of stages.
_WHOLE = 0
# Descents of a forecast: enough to order weights and sizes, a twelfth of the default.
_PROBE_STEPS = 50


@dataclass(frozen=True)
class Planned:
    """A plan and the fitted layers that it takes, by name."""

    plan: Plan
    layers: dict[str, FittedLayer]


@dataclass(frozen=True)
class Forecast:
    """A plan from short descents. seconds: that all fits for it would take here; bytes: of memory while fitting."""

    plan: Plan
    seconds: float
    bytes: int


def fit_planned(fitter: Fitter, jobs: Sequence[Job], settings: CompressSettings) -> Planned:
    """Fit the jobs at the sizes that the target needs, choose, and return the chosen fits.

    Fits that the fitter knows are not made again, so a second target costs only the sizes that are new to it.
    Raises UsageError for a budget that is too small.
    """
    found: dict[tuple[str, int], FittedLayer] = {}
    remaining = _ladders(jobs, settings)
    while any(remaining.values()):
        rung = _next_rung(jobs, remaining)
        for job, layer in _fitted(fitter, rung):
            found[job.names[0], _rung_of(job)] = layer
            if settings.max_error is not None and _error(layer) <= settings.max_error:
                remaining[job.names[0]] = []
    plan = _plan(jobs, found, settings)
    chosen = {
        choice.curve.name: found[choice.curve.name, choice.point.stages]
        for choice in plan.choices
        if choice.point is not None
    }
    return Planned(plan, chosen)


def forecast(fitter: Fitter, jobs: Sequence[Job], settings: CompressSettings) -> Forecast:
    """Return the plan that short descents lead to, and what the real fits would cost. Raises UsageError as a fit."""
    found: dict[tuple[str, int], FittedLayer] = {}
    seconds, memory = 0.0, 0
    remaining = _ladders(jobs, settings)
    while any(remaining.values()):
        short = []
        for job in _next_rung(jobs, remaining):
            memory = max(memory, _working_bytes(job))
            known = fitter.known(job)
            if known is not None:
                found[job.names[0], _rung_of(job)] = known[0]
            else:
                short.append(replace(job, fit=replace(job.fit, steps=min(job.fit.steps, _PROBE_STEPS))))
        for job, layer in _fitted(fitter, short):
            found[job.names[0], _rung_of(job)] = layer
            seconds += fitter.seconds(job) * settings.fit_of(job.names[0]).steps / max(1, job.fit.steps)
    return Forecast(_plan(jobs, found, settings), seconds, memory)


def _next_rung(jobs: Sequence[Job], remaining: dict[str, list[int]]) -> list[Job]:
    """Take the next size of every job that has one."""
    return [
        replace(job, fit=_fit_at(job.fit, remaining[job.names[0]].pop(0))) for job in jobs if remaining[job.names[0]]
    ]


def _fitted(fitter: Fitter, jobs: Sequence[Job]) -> list[tuple[Job, FittedLayer]]:
    fitter.progress.begin(len(jobs))
    by_name = {job.names[0]: job for job in jobs}
    return [(by_name[layer.name], layer) for layer in fitter.fit(jobs)]


def _ladders(jobs: Sequence[Job], settings: CompressSettings) -> dict[str, list[int]]:
    """Return the sizes to fit of every job. Raises UsageError, before any fit, for a budget below the smallest."""
    ladders = {job.names[0]: _rungs(job, settings) for job in jobs}
    if settings.budget is not None:
        least = sum(_stored(job, ladders[job.names[0]][0]) for job in jobs)
        check_budget(settings.budget, least, sum(job.dense_bytes for job in jobs))
    return ladders


def _rungs(job: Job, settings: CompressSettings) -> list[int]:
    """Return the numbers of stages to fit, rising. One that an override fixes is the only one."""
    if not settings.is_planned or "stages" in settings.override_of(job.names[0]):
        return [_rung_of(job)]
    if job.fit.forms == (Dense.kind,):
        return [_WHOLE]
    group = job.fit.block.bit_length() - 1
    shares: dict[int, float] = {}
    stages = group
    while True:
        share = _stored(job, stages) / job.dense_bytes
        if shares and share > _LARGEST:
            break
        shares[stages] = share
        stages *= 2
    if SPM.kind not in job.fit.forms:  # of other forms the smallest may be larger than the smallest chain
        shares = {each: share for each, share in shares.items() if candidates(_fit_at(job.fit, each), *job.shape)}
    whole = [_WHOLE] if Dense.kind in job.fit.forms and _stored(job, _WHOLE) < job.dense_bytes else []
    budget = settings.budget
    if budget is None or not shares:
        return [*shares, *whole]
    reach = max(_USUAL, _REACH * budget)
    return [*([stages for stages, share in shares.items() if share <= reach] or [min(shares)]), *whole]


def _fit_at(fit: FitSettings, rung: int) -> FitSettings:
    """Return the fit of one size. A dense map has one of its own; beside it, no smaller form would be chosen."""
    if rung == _WHOLE:
        return replace(fit, forms=(Dense.kind,))
    return replace(fit, stages=rung, forms=tuple(kind for kind in fit.forms if kind != Dense.kind))


def _rung_of(job: Job) -> int:
    return _WHOLE if job.fit.forms == (Dense.kind,) else job.fit.stages


def _stored(job: Job, rung: int) -> int:
    out_features, in_features = job.shape
    form = Dense(in_features, out_features) if rung == _WHOLE else _fit_at(job.fit, rung).reference(*job.shape)
    return stored_bytes(form, job.fit.store)


def _working_bytes(job: Job) -> int:
    """Estimate the memory of a descent: the state before every group for the gradient, and six matrices beside."""
    out, into = job.shape
    structure = job.fit.spm(out, into)
    states = sum(len(chain.groups) * chain.width * min(out, into) for chain in structure.chains)
    return 4 * (states + 6 * out * into)


def _error(layer: FittedLayer) -> float:
    return layer.error if layer.output_error is None else layer.output_error


def _curves(jobs: Sequence[Job], found: dict[tuple[str, int], FittedLayer]) -> list[Curve]:
    curves = []
    for job in jobs:
        name = job.names[0]
        points = [
            Point(stages, layer.stored_bytes, _error(layer))
            for (owner, stages), layer in found.items()
            if owner == name
        ]
        smaller = tuple(point for point in points if point.bytes < job.dense_bytes)
        curves.append(Curve(name, math.prod(job.shape), job.dense_bytes, smaller))
    return curves


def _plan(jobs: Sequence[Job], found: dict[tuple[str, int], FittedLayer], settings: CompressSettings) -> Plan:
    curves = _curves(jobs, found)
    if settings.max_error is not None:
        return within_error(curves, settings.max_error)
    if settings.budget is not None:
        return within_budget(curves, settings.budget)
    return Plan(tuple(Choice(curve, curve.points[0], f"{curve.points[0].stages} stages") for curve in curves))
