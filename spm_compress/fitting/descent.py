"""Gradient descent on the reconstruction error of a batch of matrices of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.fitting import hierarchical
from spm_compress.fitting.settings import FitResult, FitSettings, StepReport, Watch
from spm_compress.operator.blocks import coefficients
from spm_compress.operator.canonical import to_canonical, transpose
from spm_compress.operator.spm import SPM, FusedPlan
from spm_compress.operator.structure import Mixer, Structure

__all__ = ["fit_matrices", "relative_error"]

# How often the error is read back, the best numbers kept and the watch told.
_CHECK_EVERY = 10
# A descent ends early when this share of its steps brought less than this relative gain ...
_PATIENCE, _LEAST_GAIN = 0.2, 1e-4
# ... or when the error is at the rounding of float32.
_EXACT = 2e-6
_RESTARTS = 3
# Share of the steps over which the step size rises; the first steps of Adam are its roughest ...
_WARM_UP = 0.05
# ... and can end at the zero map, an error this close to 1. By count, 4096x4096 in two stages (0.07 % of the
# numbers) is still further from it, near 0.9996.
_COLLAPSED = 1 - 1e-4
# A descent that ends with this many times its best error was thrown about by its steps.
_STRAYED = 1.5
# The start is a chain of random rotations with this share of the weight's norm. From the full norm, long chains
# collapse to the zero map: error 1.000 against 0.856 (MiniLM 384x384, 20 stages).
_START_GAIN = 0.1
# From a closed form the descent only polishes; the full step would throw the start away.
_POLISH = 0.1


def relative_error(weight: Tensor, spm: SPM) -> float:
    """Return ||W - S|| / ||W|| in float64 (Frobenius); 0 or infinity when W is zero."""
    difference = (weight.double() - spm.to(torch.float64).to_dense()).norm().item()
    norm = weight.double().norm().item()
    return difference / norm if norm else (0.0 if difference == 0 else math.inf)


def fit_matrices(weights: Tensor, settings: FitSettings, watch: Watch | None = None) -> list[FitResult]:
    """Fit one SPM to each of weights (k, out_features, in_features).

    Any floating dtype; the work is done in float32 on the device of the weights. Deterministic: the same
    weights, settings and machine give the same numbers. `watch` is called every few steps.

    Raises FitError if a weight holds NaN or infinity, or the batch is not three-dimensional.
    """
    if weights.dim() != 3 or not weights.numel():
        raise FitError(f"a batch of weights has shape (k, out_features, in_features), not {tuple(weights.shape)}")
    weights = weights.float()
    if not bool(weights.isfinite().all()):
        raise FitError("the weight holds NaN or infinite values; repair the model or exclude the layer")
    out_features, in_features = weights.shape[1:]
    structure = settings.structure(out_features, in_features)
    # A narrowing map is fitted as its transpose: the identity it is probed with is the smaller one.
    narrowing = in_features > out_features
    if narrowing:
        weights, structure = weights.mT, structure.transposed()
    norms = torch.linalg.vector_norm(weights, dim=(1, 2), dtype=torch.float64)
    unit = math.sqrt(min(out_features, in_features))
    # At the norm of an orthogonal matrix the same step size serves every layer; zero weights stay zero.
    scaled = (weights * (unit / torch.where(norms > 0, norms, 1))[:, None, None]).float()
    descended = _with_restarts(scaled.contiguous(), structure, settings, watch)
    results = []
    for k, (numbers, done) in enumerate(descended):
        batch = [{name: array[None].cpu() for name, array in named.items()} for named in numbers]
        factor = (norms[k : k + 1] / unit).cpu() * _best_scale(scaled[k : k + 1].cpu(), structure, batch)
        back = _times(batch, structure, factor.abs().float(), torch.where(factor < 0, -1.0, 1.0))
        spm = SPM(structure, [{name: array[0] for name, array in named.items()} for named in back])
        spm = transpose(spm) if narrowing else spm
        spm = _stored(spm)
        weight = (weights[k].mT if narrowing else weights[k]).cpu()
        results.append(FitResult(spm, relative_error(weight, spm), done.steps, done.restarts, done.start))
    return results


def _best_scale(weights: Tensor, structure: Structure, numbers: list[dict[str, Tensor]]) -> Tensor:
    """Return (k,) the factor <W, S> / <S, S> of least error: with it, no fit is worse than the zero map."""
    plan = FusedPlan(structure)
    dense = plan.dense(plan.blocks(numbers)).double()
    energy = dense.square().sum((1, 2))
    return torch.where(energy > 0, (dense * weights).sum((1, 2)) / energy, 1.0)


@dataclass(frozen=True)
class _Done:
    steps: int
    restarts: int
    start: str


@dataclass(frozen=True)
class _Descent:
    """Best numbers of a batch with their relative errors (k,), and which of the batch diverged (k,)."""

    numbers: list[dict[str, Tensor]]
    errors: Tensor
    diverged: Tensor
    steps: int


def _with_restarts(
    weights: Tensor, structure: Structure, settings: FitSettings, watch: Watch | None
) -> list[tuple[list[dict[str, Tensor]], _Done]]:
    start = "random"
    if hierarchical.is_identifiable(structure):
        start = "hierarchical"
        numbers = hierarchical.factorize(weights.cpu(), structure)
        numbers = [{name: array.to(weights.device) for name, array in named.items()} for named in numbers]
    else:
        numbers = _random_start(weights, structure, settings.seed)
    rate = settings.learning_rate * (_POLISH if start == "hierarchical" else 1)
    found: dict[int, tuple[list[dict[str, Tensor]], _Done]] = {}
    open_rows = torch.arange(len(weights), device=weights.device)
    for restart in range(_RESTARTS + 1):
        begin = [{name: array[open_rows] for name, array in named.items()} for named in numbers]
        descent = _descend(weights[open_rows], structure, begin, replace(settings, learning_rate=rate), watch)
        last = restart == _RESTARTS
        for i, row in enumerate(open_rows.tolist()):
            if last or not descent.diverged[i]:
                best = [{name: array[i] for name, array in named.items()} for named in descent.numbers]
                found[row] = best, _Done(descent.steps, restart, start)
        open_rows = open_rows[descent.diverged]
        if not len(open_rows) or last:
            break
        rate /= 4
    return [found[row] for row in range(len(weights))]


def _descend(
    weights: Tensor, structure: Structure, begin: list[dict[str, Tensor]], settings: FitSettings, watch: Watch | None
) -> _Descent:
    plan = FusedPlan(structure).to(weights.device)
    numbers = [{name: array.clone().requires_grad_() for name, array in named.items()} for named in begin]
    parameters = [array for named in numbers for array in named.values()]
    best = [array.detach().clone() for array in parameters]
    norms = torch.linalg.vector_norm(weights, dim=(1, 2))
    norms = torch.where(norms > 0, norms, math.inf)  # a zero weight is met by the scale zero: nothing to descend
    errors = torch.full_like(norms, math.inf)
    broken = torch.zeros_like(norms, dtype=torch.bool)
    adam = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _share_of_rate(step, settings.steps))
    patience = max(2, round(settings.steps * _PATIENCE / _CHECK_EVERY))
    history: list[float] = []
    step = 0
    for step in range(settings.steps + 1):
        if step == settings.steps:  # the last step's numbers still have to be judged
            with torch.no_grad():
                dense = plan.dense(plan.blocks(numbers))
        else:
            dense = plan.dense(plan.blocks(numbers))
        difference = dense.detach() - weights
        if step % _CHECK_EVERY == 0 or step == settings.steps:
            now = torch.linalg.vector_norm(difference, dim=(1, 2)) / norms
            broken |= ~now.isfinite()
            better = now < errors
            errors = torch.where(better, now, errors)
            for kept, array in zip(best, parameters, strict=True):
                kept.copy_(torch.where(better.reshape(-1, *[1] * (array.dim() - 1)), array.detach(), kept))
            history.append(float(errors.mean()))
            if watch:
                watch(StepReport(step, settings.steps, history[-1]))
            if _is_over(history, patience, float(errors.max())):
                break
        if step < settings.steps:
            adam.zero_grad()
            dense.backward(difference.mul_((2 / norms**2)[:, None, None]))  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
    # A NaN on the way, an end far from the best, or no more than the zero map: a smaller step may do.
    diverged = (broken | (errors > _COLLAPSED) | (now > _STRAYED * errors + _EXACT)) & torch.tensor(
        settings.steps > 0, device=broken.device
    )
    shaped = iter(best)
    return _Descent([{name: next(shaped) for name in named} for named in numbers], errors, diverged, step)


def _share_of_rate(step: int, steps: int) -> float:
    """Rise linearly over the first steps, then fall as a cosine."""
    return min(1.0, (step + 1) / (_WARM_UP * steps + 1)) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2


def _is_over(history: Sequence[float], patience: int, worst: float) -> bool:
    if worst <= _EXACT:
        return True
    return len(history) > patience and history[-1] > history[-1 - patience] * (1 - _LEAST_GAIN)


def _random_start(weights: Tensor, structure: Structure, seed: int) -> list[dict[str, Tensor]]:
    """Random rotations, in the form of the structure's mixer, scaled to `_START_GAIN` of the weight's norm."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(weights)
    start = []
    for chain in structure.chains:
        # Below pi/4, so that every pair begins with a direct entry to divide by: any angle fits up to 0.3 % better,
        # but spreads the canonical numbers too far for float16.
        angles = torch.empty(batch, chain.pairs).uniform_(-math.pi / 4, math.pi / 4, generator=generator)
        if structure.mixer is Mixer.GENERAL:
            direct, cross = coefficients(chain, Mixer.ROTATION, {"angles": angles})
            named = {"direct": direct, "cross": cross}
        else:
            named = {"angles": angles}
        if chain.diagonals:
            named["diagonals"] = torch.ones(batch, len(chain.diagonals), chain.width)
        start.append({name: array.to(weights.device) for name, array in named.items()})
    plan = FusedPlan(structure).to(weights.device)
    dense = plan.dense(plan.blocks(start))
    gain = _START_GAIN * torch.linalg.vector_norm(weights, dim=(1, 2)) / torch.linalg.vector_norm(dense, dim=(1, 2))
    # On the weight's side of zero: descent from the other side has to pass a saddle (1x1 never does).
    sign = torch.where((dense * weights).sum((1, 2)) < 0, -1.0, 1.0)
    return _times(start, structure, gain, sign)


def _times(
    numbers: list[dict[str, Tensor]], structure: Structure, factor: Tensor, sign: Tensor
) -> list[dict[str, Tensor]]:
    """Return the numbers of sign * factor times each map of a batch; both (k,), factor >= 0.

    General stages share the factor evenly, which keeps them equally steep; rotations have it on one diagonal.
    """
    numbers = [dict(named) for named in numbers]
    if structure.mixer is Mixer.ROTATION:
        scaled = next(named for named in numbers if "diagonals" in named)
        scaled["diagonals"] = scaled["diagonals"] * (sign * factor)[:, None, None]
        return numbers
    root = (factor ** (1 / structure.stages))[:, None, None]
    for i, named in enumerate(numbers):
        share = root.expand(-1, named["direct"].shape[1], 1).clone()
        if i == 0:
            share[:, 0, 0] *= sign
        named["direct"], named["cross"] = named["direct"] * share, named["cross"] * share
    return numbers


def _stored(spm: SPM) -> SPM:
    if spm.structure.mixer is not Mixer.GENERAL:
        return spm
    try:
        return to_canonical(spm)
    except FitError:  # out of range: twice the numbers, and the count says so
        return spm
