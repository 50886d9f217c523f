"""Gradient descent of one structure on a batch of matrices of one shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.adam import adam

from spm_compress.fitting import hierarchical
from spm_compress.fitting.objective import Objective, energies
from spm_compress.fitting.settings import FitSettings, OnStep, StepReport
from spm_compress.fitting.target import Target
from spm_compress.fitting.threads import inner
from spm_compress.fitting.workspace import Workspace
from spm_compress.operator.block_products import coefficients
from spm_compress.operator.structure import Chain, Mixer, Structure

__all__ = ["Descended", "descend", "scaled"]

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
_POLISH = 0.05
# Every general stage scales what the others do, so the step falls as one over their number beyond these: 80 stages on
# 1536x384 end at the zero map in 100 steps of half the size. Half the step, falling as the root instead, was worse at
# 22 and 45 stages (384x384: 0.851 against 0.847 and 0.734 against 0.731).
_SHALLOW = 20
# Fewer steps a stage than these do not recover from the roughest ones, and want a lower rate: 45 stages in 100 steps
# are best at 0.75 of it (0.788 against 0.800 at 1.0 and 0.794 at 0.5).
_STEPS_PER_STAGE = 10
# Subspace iterations of the low-rank term before and after the descent; during it, one a step.
_LOW_RANK_SWEEPS = 16

Numbers = list[dict[str, Tensor]]


@dataclass(frozen=True)
class Descended:
    """Numbers of one matrix (as `Structure.shapes`), and how they were reached."""

    numbers: Numbers
    error: float
    steps: int
    restarts: int
    start: str


def descend(
    objective: Objective, structure: Structure, settings: FitSettings, watch: OnStep | None = None
) -> list[Descended]:
    """Fit one structure, which has a chain, to each matrix of the objective; begin again smaller where it diverges."""
    start = "random"
    weights = objective.weights
    target = Target(objective, replace(structure, rank=0), whole=structure.rank > 0)
    if objective.metric is None and not structure.rank and hierarchical.is_identifiable(structure):
        start = "hierarchical"
        numbers = hierarchical.factorize(weights.cpu(), structure)
        numbers = [{name: array.to(weights.device) for name, array in named.items()} for named in numbers]
    else:
        numbers = _random_start(target, structure, settings.seed)
    rate = settings.learning_rate * (_POLISH if start == "hierarchical" else 1)
    if structure.mixer is Mixer.GENERAL:
        rate *= min(1.0, _SHALLOW / structure.stages)
        rate *= min(1.0, settings.steps / (_STEPS_PER_STAGE * structure.stages)) ** 0.25
    found: dict[int, Descended] = {}
    open_rows = torch.arange(len(weights), device=weights.device)
    for restart in range(_RESTARTS + 1):
        begin = [{name: array[open_rows] for name, array in named.items()} for named in numbers]
        part = target if len(open_rows) == len(weights) else target.subset(open_rows)
        ended = _descend(part, structure, begin, replace(settings, learning_rate=rate), watch)
        last = restart == _RESTARTS
        for i, row in enumerate(open_rows.tolist()):
            if last or not ended.diverged[i]:
                best = [{name: array[i] for name, array in named.items()} for named in ended.numbers]
                found[row] = Descended(best, float(ended.errors[i]), int(ended.steps[i]), restart, start)
        open_rows = open_rows[ended.diverged]
        if not len(open_rows) or last:
            break
        rate /= 4
    return [found[row] for row in range(len(weights))]


@dataclass(frozen=True)
class _Ended:
    """Best numbers of a batch with their relative errors, which of the batch diverged, and steps taken; each (k,)."""

    numbers: Numbers
    errors: Tensor
    diverged: Tensor
    steps: Tensor


def _descend(
    target: Target, structure: Structure, begin: Numbers, settings: FitSettings, watch: OnStep | None
) -> _Ended:
    objective = target.objective
    numbers = [{name: array.clone().requires_grad_() for name, array in named.items()} for named in begin]
    parameters = [array for named in numbers for array in named.values()]
    term = _low_rank_start(objective, structure.rank, settings.seed)
    best = [array.detach().clone() for array in (*parameters, *term)]
    norms = objective.norms()
    slope = (2 / norms**2)[:, None, None]
    errors = torch.full_like(norms, math.inf)
    broken = torch.zeros_like(norms, dtype=torch.bool)
    workspace = Workspace()
    adam = _Adam(parameters)
    patience = max(2, round(settings.steps * _PATIENCE / _CHECK_EVERY))
    history: list[Tensor] = []
    over = torch.zeros_like(broken)
    steps = torch.zeros_like(norms, dtype=torch.int64)
    last = torch.full_like(norms, math.inf)
    for step in range(settings.steps + 1):
        with torch.set_grad_enabled(step < settings.steps):  # the last step's numbers only have to be judged
            entries = target.entries(numbers, workspace)
        chain = entries.detach()
        for _ in range((1 if step < settings.steps else _LOW_RANK_SWEEPS) if term else 0):
            term = objective.low_rank_step(chain, *term)
        difference = chain.sub_(objective.weights)  # in place: no gradient on the way back needs what it was
        if term:
            difference += term[0] @ term[1]
        if step % _CHECK_EVERY == 0 or step == settings.steps:
            energy, gradient = energies(objective, difference)
            now = energy.sqrt() / norms
            # What is over stays as it is, so that a matrix ends the same whatever else is in the batch.
            last, steps = torch.where(over, last, now), torch.where(over, steps, step)
            broken |= ~now.isfinite() & ~over
            better = (now < errors) & ~over
            errors = torch.where(better, now, errors)
            for kept, array in zip(best, (*parameters, *term), strict=True):
                kept.copy_(torch.where(better.reshape(-1, *[1] * (array.dim() - 1)), array.detach(), kept))
            history.append(errors)
            if watch:
                watch(StepReport(step, settings.steps, float(errors.mean())))
            over |= _over(history, patience)
            if bool(over.all()):
                break
        else:
            gradient = objective.weighted(difference)
        if step < settings.steps:
            for parameter in parameters:
                parameter.grad = None
            entries.backward(gradient.mul_(slope))  # type: ignore[no-untyped-call]
            adam.step(settings.learning_rate * _share_of_rate(step, settings.steps))
    # A NaN on the way, an end far from the best, or no more than the zero map: a smaller step may do.
    diverged = (broken | (errors > _COLLAPSED) | (last > _STRAYED * errors + _EXACT)) & torch.tensor(
        settings.steps > 0, device=broken.device
    )
    shaped = iter(best)
    ended = [{name: next(shaped) for name in named} for named in structure.shapes()]
    return _Ended(ended, errors, diverged, steps)


class _Adam:
    """What torch.optim.Adam computes, without its bookkeeping: that takes a fifth of a small matrix's step."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.means = [torch.zeros_like(each) for each in parameters]
        self.squares = [torch.zeros_like(each) for each in parameters]
        self.counts = [torch.zeros((), device=each.device) for each in parameters]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        adam(
            self.parameters,
            gradients,
            self.means,
            self.squares,
            [],
            self.counts,
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.99,
            lr=rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )


def _low_rank_start(objective: Objective, rank: int, seed: int) -> tuple[Tensor, Tensor] | tuple[()]:
    """Return left (k, out, rank) and right (k, rank, in) near the truncated SVD of the weights; () for rank 0."""
    if not rank:
        return ()
    generator = torch.Generator().manual_seed(seed)
    batch, out, into = objective.weights.shape
    left = torch.randn(out, rank, generator=generator).expand(batch, -1, -1).to(objective.weights.device)
    right = torch.randn(rank, into, generator=generator).expand(batch, -1, -1).to(objective.weights.device)
    for _ in range(_LOW_RANK_SWEEPS):
        left, right = objective.low_rank_step(None, left, right)
    return left, right


def _share_of_rate(step: int, steps: int) -> float:
    """Rise linearly over the first steps, then fall as a cosine."""
    return min(1.0, (step + 1) / (_WARM_UP * steps + 1)) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2


def _over(history: Sequence[Tensor], patience: int) -> Tensor:
    exact = history[-1] <= _EXACT
    return exact | (history[-1] > history[-1 - patience] * (1 - _LEAST_GAIN)) if len(history) > patience else exact


def _random_start(target: Target, structure: Structure, seed: int) -> Numbers:
    """Random rotations, the same for every weight, in the form of the structure's mixer, `_START_GAIN` of its norm."""
    generator = torch.Generator().manual_seed(seed)
    objective = target.objective
    weights, batch = objective.weights, len(objective.weights)
    start = []
    for chain in structure.chains:
        named = _random_rotations(batch, chain, structure.mixer, generator)
        start.append({name: array.to(weights.device) for name, array in named.items()})
    entries = target.entries(start)
    gain = _START_GAIN * objective.frobenius() / torch.linalg.vector_norm(entries, dim=(1, 2))
    # On the weight's side of zero: descent from the other side has to pass a saddle (1x1 never does).
    sign = torch.where(inner(entries, weights) < 0, -1.0, 1.0)
    return scaled(start, replace(structure, rank=0), gain, sign)


def _random_rotations(batch: int, chain: Chain, mixer: Mixer, generator: torch.Generator) -> dict[str, Tensor]:
    # Below pi/4, so that every pair begins with a direct entry to divide by: any angle fits up to 0.3 % better,
    # but spreads the canonical numbers too far for float16.
    angles = torch.empty(chain.pairs).uniform_(-math.pi / 4, math.pi / 4, generator=generator).repeat(batch, 1)
    if mixer is Mixer.GENERAL:
        direct, cross = coefficients(chain, Mixer.ROTATION, {"angles": angles})
        named = {"direct": direct, "cross": cross}
    else:
        named = {"angles": angles}
    if chain.diagonals:
        named["diagonals"] = torch.ones(batch, len(chain.diagonals), chain.width)
    return named


def scaled(numbers: Numbers, structure: Structure, factor: Tensor, sign: Tensor) -> Numbers:
    """Return the numbers of sign * factor times each map of a batch; both (k,), factor >= 0.

    General stages share the factor evenly, which keeps them equally steep, and so do the diagonals of rotations.
    """
    numbers = [dict(named) for named in numbers]
    if structure.rank:
        numbers[-1]["left"] = numbers[-1]["left"] * (sign * factor)[:, None, None]
    chains = numbers[: len(structure.chains)]
    if structure.mixer is Mixer.ROTATION:
        diagonals = sum(len(chain.diagonals) for chain in structure.chains)
        for named in chains:
            if "diagonals" in named:
                named["diagonals"] = named["diagonals"] * (factor ** (1 / diagonals))[:, None, None]
        first = next((named for named in chains if "diagonals" in named), None)
        if first is not None:
            first["diagonals"] = torch.cat(
                (first["diagonals"][:, :1] * sign[:, None, None], first["diagonals"][:, 1:]), 1
            )
        return numbers
    root = (factor ** (1 / max(structure.stages, 1)))[:, None, None]
    for i, named in enumerate(chains):
        share = root.expand(-1, named["direct"].shape[1], 1).clone()
        if i == 0:
            share[:, 0, 0] *= sign
        named["direct"], named["cross"] = named["direct"] * share, named["cross"] * share
    return numbers
