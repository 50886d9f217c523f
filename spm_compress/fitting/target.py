"""The entries that a fit is judged by: all of a matrix, or those alone that maps of the structure can reach."""

from __future__ import annotations

from copy import copy

from torch import Tensor

from spm_compress.fitting.objective import Objective
from spm_compress.fitting.workspace import Workspace
from spm_compress.operator.spm import FusedPlan, Numbers
from spm_compress.operator.structure import Structure

__all__ = ["Target"]


class Target:
    """An objective over the entries that matter, and the same entries of a map of one structure.

    Ten stages at width 11008 reach a quarter of the entries of a 11008x4096 map; the others are zero whatever the
    numbers, and only add their share to the error. That holds for the plain objective; whole: do not count on it.
    """

    def __init__(self, objective: Objective, structure: Structure, *, whole: bool = False) -> None:
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

    def entries(self, numbers: Numbers, workspace: Workspace | None = None) -> Tensor:
        """Return the entries (k, rows, columns) of the maps of a batch of numbers, as the objective's weights.

        workspace: makes it fast and once differentiable; valid until the next call with it.
        """
        if workspace is None:
            blocks = self._plan.blocks(numbers)
            return self._plan.dense(blocks) if self._reach is None else self._reach.product(*blocks[0]).flatten(1, 2)
        blocks = self._plan.blocks(numbers, workspace.blocks)
        return self._plan.dense(blocks) if self._reach is None else workspace.tiles(self._reach, *blocks[0])
