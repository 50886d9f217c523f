"""The entries that a fit is judged by: all of a matrix, or those alone that maps of the structure can reach."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import TYPE_CHECKING

from torch import Tensor

from spm_compress.fitting.objective import Objective
from spm_compress.forms.spm.plan import FusedPlan
from spm_compress.forms.spm.workspace import Workspace

if TYPE_CHECKING:
    from spm_compress.forms.form import Arrays
    from spm_compress.forms.spm.form import SPM

__all__ = ["Target"]


class Target:
    """An objective over the entries that matter, and the same entries of a map of one structure.

    Ten stages at width 11008 reach a quarter of the entries of a 11008x4096 map; the others are zero whatever the
    numbers, and only add their share to the error. That holds for the plain objective; whole: do not count on it.
    """

    def __init__(self, objective: Objective, structure: SPM, *, whole: bool = False) -> None:
        self._plan = FusedPlan(structure).to(objective.weights.device)
        self._reach = None if whole or objective.metric is not None else self._plan.reach
        self.objective = objective
        if self._reach is not None:
            self.objective = objective.within(self._plan.reached(objective.weights).flatten(1, 2))

    def subset(self, rows: Tensor) -> Target:
        """Return the target of some of the batch."""
        part = copy(self)
        part.objective = self.objective.subset(rows)
        return part

    def entries(self, arrays: Arrays) -> Tensor:
        """Return the entries (k, rows, columns) of the maps of a batch of arrays, as the objective's weights."""
        blocks = self._plan.prepared(arrays)
        return self._plan.dense(blocks) if self._reach is None else self._reach.product(*blocks[0]).flatten(1, 2)

    def trained_entries(self) -> Callable[[Arrays], Tensor]:
        """Return `entries`, fast and once differentiable; each result is valid until the next call."""
        workspace = Workspace()

        def entries(arrays: Arrays) -> Tensor:
            blocks = self._plan.prepared(arrays, workspace.blocks)
            return self._plan.dense(blocks) if self._reach is None else workspace.tiles(self._reach, *blocks[0])

        return entries
