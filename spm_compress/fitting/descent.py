"""Gradient descent of a batch of maps of one form on matrices of one shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from spm_compress.fitting.low_rank_term import LowRankTerm
from spm_compress.fitting.objective import Objective, energies
from spm_compress.fitting.settings import DescentSettings, OnStep, StepReport

__all__ = ["Descended", "Target", "descend"]

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

Arrays = Mapping[str, Tensor]


class Target(Protocol):
    """What a descent goes after: an objective, and the entries that a map's arrays give to compare with its weights."""

    objective: Objective

    def subset(self, rows: Tensor) -> Target:
        """Return the target of some of the batch."""

    def trained_entries(self) -> Callable[[Arrays], Tensor]:
        """Return arrays -> entries (k, rows, columns), once differentiable, each valid until the next call."""


@dataclass(frozen=True)
class Descended:
    """Arrays of one matrix, and how they were reached; factors: of the low-rank term beside them, if there is one."""

    arrays: Arrays
    factors: tuple[Tensor, ...]
    error: float
    steps: int
    restarts: int


def descend(
    target: Target, begin: Arrays, settings: DescentSettings, rank: int = 0, watch: OnStep | None = None
) -> list[Descended]:
    """Fit the arrays (k, ...) from where they begin; begin again with a smaller step where a descent diverges.

    rank: of a low-rank term that follows beside them.
    """
    weights = target.objective.weights
    found: dict[int, Descended] = {}
    open_rows = torch.arange(len(weights), device=weights.device)
    rate = settings.learning_rate
    for restart in range(_RESTARTS + 1):
        start = {name: array[open_rows] for name, array in begin.items()}
        part = target if len(open_rows) == len(weights) else target.subset(open_rows)
        term = LowRankTerm(part.objective, rank, settings.seed) if rank else None
        descent = _Descent(part, start, term, replace(settings, learning_rate=rate))
        descent.run(watch)
        last = restart == _RESTARTS
        diverged = descent.diverged()
        for i, row in enumerate(open_rows.tolist()):
            if last or not diverged[i]:
                found[row] = descent.best_of(i, restart)
        open_rows = open_rows[diverged]
        if not len(open_rows) or last:
            break
        rate /= 4
    return [found[row] for row in range(len(weights))]


class _Descent:
    """One descent of a batch: its steps, and what it has been at its best."""

    def __init__(self, target: Target, begin: Arrays, term: LowRankTerm | None, settings: DescentSettings) -> None:
        self.objective, self.settings, self.term = target.objective, settings, term
        self.entries = target.trained_entries()
        self.arrays = {name: array.clone().requires_grad_() for name, array in begin.items()}
        self.adam = _Adam(list(self.arrays.values()))
        self.best = [array.detach().clone() for array in self._kept()]
        self.norms = self.objective.norms()
        self.slope = (2 / self.norms**2)[:, None, None]
        # of each matrix (k,): the best error, the last one, steps until it was over, whether it is, and ever was NaN
        self.errors = torch.full_like(self.norms, math.inf)
        self.last = torch.full_like(self.norms, math.inf)
        self.steps = torch.zeros_like(self.norms, dtype=torch.int64)
        self.over = torch.zeros_like(self.norms, dtype=torch.bool)
        self.broken = torch.zeros_like(self.norms, dtype=torch.bool)
        self.history: list[Tensor] = []

    def run(self, watch: OnStep | None) -> None:
        """Step until all are over."""
        steps = self.settings.steps
        for step in range(steps + 1):
            is_last = step == steps
            with torch.set_grad_enabled(not is_last):  # the last step's numbers only have to be judged
                entries = self.entries(self.arrays)
            difference = self._difference(entries, is_last)
            if step % _CHECK_EVERY == 0 or is_last:
                gradient = self._look(difference, step)
                if watch:
                    watch(StepReport(step, steps, float(self.errors.mean())))
                if bool(self.over.all()):
                    break
            else:
                gradient = self.objective.weighted(difference)
            if not is_last:
                self._step(entries, gradient, step)

    def diverged(self) -> Tensor:
        """Return (k,) which ended in a NaN on the way, far from their best, or no better than the zero map.

        A smaller step may do for these.
        """
        strayed = self.last > _STRAYED * self.errors + _EXACT
        return (self.broken | (self.errors > _COLLAPSED) | strayed) & (self.settings.steps > 0)

    def best_of(self, i: int, restarts: int) -> Descended:
        """Return one matrix at its best."""
        arrays = {name: best[i] for name, best in zip(self.arrays, self.best, strict=False)}
        factors = tuple(best[i] for best in self.best[len(arrays) :])
        return Descended(arrays, factors, float(self.errors[i]), int(self.steps[i]), restarts)

    def _kept(self) -> list[Tensor]:
        return [*self.arrays.values(), *(self.term.factors if self.term else ())]

    def _difference(self, entries: Tensor, is_last: bool) -> Tensor:
        """Return what the map differs by, in the place of its entries: no gradient on the way back needs those."""
        matrices = entries.detach()
        if self.term is not None:
            self.term.follow(matrices, is_last=is_last)
        difference = matrices.sub_(self.objective.weights)
        if self.term is not None:
            difference += self.term.matrix()
        return difference

    def _look(self, difference: Tensor, step: int) -> Tensor:
        """Keep what is the best so far, see which are over, and return the gradient."""
        energy, gradient = energies(self.objective, difference)
        now = energy.sqrt() / self.norms
        # What is over stays as it is, so that a matrix ends the same whatever else is in the batch.
        self.last = torch.where(self.over, self.last, now)
        self.steps = torch.where(self.over, self.steps, step)
        self.broken |= ~now.isfinite() & ~self.over
        better = (now < self.errors) & ~self.over
        self.errors = torch.where(better, now, self.errors)
        for kept, array in zip(self.best, self._kept(), strict=True):
            kept.copy_(torch.where(better.reshape(-1, *[1] * (array.dim() - 1)), array.detach(), kept))
        self.history.append(self.errors)
        patience = max(2, round(self.settings.steps * _PATIENCE / _CHECK_EVERY))
        self.over |= _over(self.history, patience)
        return gradient

    def _step(self, entries: Tensor, gradient: Tensor, step: int) -> None:
        for array in self.arrays.values():
            array.grad = None
        entries.backward(gradient.mul_(self.slope))  # type: ignore[no-untyped-call]
        self.adam.step(self.settings.learning_rate * _share_of_rate(step, self.settings.steps))


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


def _share_of_rate(step: int, steps: int) -> float:
    """Rise linearly over the first steps, then fall as a cosine."""
    return min(1.0, (step + 1) / (_WARM_UP * steps + 1)) * (1 + math.cos(math.pi * step / max(steps, 1))) / 2


def _over(history: Sequence[Tensor], patience: int) -> Tensor:
    exact = history[-1] <= _EXACT
    return exact | (history[-1] > history[-1 - patience] * (1 - _LEAST_GAIN)) if len(history) > patience else exact
