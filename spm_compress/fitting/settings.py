"""What a descent is asked for, and what it tells while it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["DescentSettings", "OnStep", "StepReport"]


@dataclass(frozen=True)
class DescentSettings:
    """steps: most gradient steps; learning_rate: Adam's step at the start; seed: of what is drawn."""

    steps: int
    learning_rate: float
    seed: int = 0


@dataclass(frozen=True)
class StepReport:
    """Where a descent stands: step of steps, best relative error so far averaged over the batch."""

    step: int
    steps: int
    error: float


OnStep = Callable[[StepReport], None]
