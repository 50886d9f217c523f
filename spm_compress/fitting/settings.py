"""What a fit is asked for, and what it tells while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from spm_compress.errors import UsageError
from spm_compress.operator.pairing import Schedule
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure, build_structure

__all__ = ["FitResult", "FitSettings", "StepReport", "Watch"]


@dataclass(frozen=True)
class FitSettings:
    """How every matrix is fitted.

    stages: total number of mixing stages; steps: most gradient steps; learning_rate: Adam's step at
    the start, for a weight scaled to the norm of an orthogonal matrix; seed: of pairings and of the random start.
    """

    stages: int = 10
    mixer: Mixer = Mixer.GENERAL
    schedule: Schedule = Schedule.GROUPED
    block: int = 32
    steps: int = 400
    learning_rate: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixer is Mixer.CANONICAL:
            raise UsageError("the canonical form is stored, not fitted: fit with the general mixer, which becomes it")

    def structure(self, out_features: int, in_features: int) -> Structure:
        """Return the structure in which a weight of this shape is fitted (not yet canonical)."""
        return build_structure(
            in_features,
            out_features,
            stages=self.stages,
            mixer=self.mixer,
            schedule=self.schedule,
            block=self.block,
            seed=self.seed,
        )

    def stored_structure(self, out_features: int, in_features: int, *, half: bool = False) -> Structure:
        """Return the structure that is stored: rotations as they are, general mixers canonical; half: for float16."""
        structure = self.structure(out_features, in_features)
        return structure.canonical(half=half) if structure.mixer is Mixer.GENERAL else structure


@dataclass(frozen=True)
class StepReport:
    """Where a descent stands: step of steps, best relative error so far averaged over the batch."""

    step: int
    steps: int
    error: float


Watch = Callable[[StepReport], None]


@dataclass(frozen=True)
class FitResult:
    """One fitted matrix: the operator as it is stored (float32), its error, how it was reached.

    error: relative Frobenius error ||W - S|| / ||W|| (0 for a zero matrix that is met exactly).
    restarts: how often the descent began again with a smaller step because it had diverged.
    """

    spm: SPM
    error: float
    steps: int
    restarts: int
    start: str
