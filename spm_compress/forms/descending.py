"""What every form that descends shares: it says where it begins, and the descent does the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from spm_compress.fitting.descent import Target, descend
from spm_compress.fitting.objective import Objective
from spm_compress.fitting.settings import DescentSettings, OnStep
from spm_compress.forms.form import Arrays, Fitted, Form

if TYPE_CHECKING:
    from spm_compress.forms.settings import FitSettings

__all__ = ["Descending", "Start", "WholeTarget", "fit_by_descent"]


@dataclass(frozen=True)
class Start:
    """Where a descent of a batch begins: what it goes after, arrays (k, ...), what these are, and Adam's step."""

    target: Target
    arrays: Arrays
    name: str
    learning_rate: float


class WholeTarget:
    """An objective over all entries of a form's matrices; as `Target`."""

    def __init__(self, objective: Objective, form: Form) -> None:
        self.objective = objective
        self._form = form
        self._runner = form.runner()

    def subset(self, rows: Tensor) -> WholeTarget:
        """As `Target.subset`."""
        return WholeTarget(self.objective.subset(rows), self._form)

    def trained_entries(self) -> Callable[[Arrays], Tensor]:
        """As `Target.trained_entries`."""
        return lambda arrays: self._runner.dense(self._runner.prepared(arrays))


@runtime_checkable
class Descending(Protocol):
    """A form that is fitted by gradient descent."""

    def begin(self, objective: Objective, settings: FitSettings, *, alone: bool) -> Start:
        """Return where the descent begins. alone: whether the form is the whole map, or has a low rank beside it."""


def fit_by_descent(form: Descending, objective: Objective, settings: FitSettings, watch: OnStep | None) -> list[Fitted]:
    """Fit a form to each matrix of the objective."""
    start = form.begin(objective, settings, alone=True)
    descent = DescentSettings(settings.steps, start.learning_rate, settings.seed)
    return [
        Fitted(each.arrays, each.error, each.steps, each.restarts, start.name)
        for each in descend(start.target, start.arrays, descent, watch=watch)
    ]
