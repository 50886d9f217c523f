"""What a fit is asked for, and what it tells while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spm_compress.errors import UsageError
from spm_compress.operator.pairing import Schedule
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure, build_structure

__all__ = ["EFFORTS", "LARGEST_SEED", "FitResult", "FitSettings", "OnStep", "StepReport"]

# What torch takes.
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class FitSettings:
    """How every matrix is fitted.

    stages: total number of mixing stages; steps: most gradient steps; learning_rate: Adam's step at
    the start, for a weight scaled to the norm of an orthogonal matrix; seed: of pairings and of the random start.
    mixer: None tries general stages and rotations at the same size and keeps the better ones, matrix by matrix.
    rank: of a low-rank term beside the stages; None tries several shares of the size for it, up to all of it.
    """

    stages: int = 10
    mixer: Mixer | None = Mixer.GENERAL
    rank: int | None = 0
    schedule: Schedule = Schedule.GROUPED
    block: int = 32
    steps: int = 600
    learning_rate: float = 0.16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mixer is Mixer.CANONICAL:
            raise UsageError("the canonical form is stored, not fitted: fit with the general mixer, which becomes it")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"`seed` {self.seed}: must be between 0 and {LARGEST_SEED}")
        if self.rank is not None and self.rank < 0:
            raise UsageError(f"`rank` {self.rank}: the rank of a low-rank term is 0 or more")

    def structure(self, out_features: int, in_features: int) -> Structure:
        """Return the structure in which a weight of this shape is fitted (not yet canonical).

        Where mixer or rank are open, the one whose size all others keep to: general stages, no low-rank term.
        """
        structure = build_structure(
            in_features,
            out_features,
            stages=self.stages,
            mixer=self.mixer or Mixer.GENERAL,
            schedule=self.schedule,
            block=self.block,
            seed=self.seed,
        )
        return replace(structure, rank=self.rank or 0)

    def stored_structure(self, out_features: int, in_features: int, *, half: bool = False) -> Structure:
        """Return the structure that is stored: rotations as they are, general mixers canonical; half: for float16."""
        structure = self.structure(out_features, in_features)
        return structure.canonical(half=half) if structure.mixer is Mixer.GENERAL else structure


# Fields of FitSettings by how long a fit may take; what each reaches on MiniLM is in docs/measurements.md.
EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"steps": 100},
    "balanced": {"steps": 600},
    "best": {"steps": 1500, "mixer": None, "rank": None},
}


@dataclass(frozen=True)
class StepReport:
    """Where a descent stands: step of steps, best relative error so far averaged over the batch."""

    step: int
    steps: int
    error: float


OnStep = Callable[[StepReport], None]


@dataclass(frozen=True)
class FitResult:
    """One fitted matrix: the operator as it is stored (float32), its error, how it was reached.

    error: relative Frobenius error ||W - S|| / ||W|| (0 for a zero matrix that is met exactly).
    output_error: the same of the outputs, ||(W - S) C|| / ||W C||, where the fit was weighted.
    restarts: how often the descent began again with a smaller step because it had diverged.
    """

    spm: SPM
    error: float
    steps: int
    restarts: int
    start: str
    output_error: float | None = None
