"""What a fit is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spm_compress.codecs import FLOAT32, Codec, Grid, bits_text
from spm_compress.errors import UsageError
from spm_compress.forms.dense import Dense
from spm_compress.forms.form import Form, numbers_of
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm.form import SPM, build_spm
from spm_compress.forms.spm.pairing import Schedule
from spm_compress.forms.spm.structure import Mixer
from spm_compress.forms.sum import Sum

__all__ = ["EFFORTS", "LARGEST_SEED", "FitSettings"]

# What torch takes.
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class FitSettings:
    """How every matrix is fitted.

    forms: kinds of forms to try; the best of them is kept, matrix by matrix, and all keep to the size of the SPM.
    stages: total number of mixing stages; steps: most gradient steps; learning_rate: Adam's step at
    the start, for a weight scaled to the norm of an orthogonal matrix; seed: of pairings and of the random start.
    mixer: None tries general stages and rotations at the same size and keeps the better ones, matrix by matrix.
    rank: of a low-rank term beside the stages; None tries several shares of the size for it, up to all of it.
    store: how the numbers are stored; forms take it each in their own way (`Form.codecs`). fewest: or in fewer bits
    than that, as long as the error rises by less than 0.5 %, weight by weight.
    """

    stages: int = 10
    mixer: Mixer | None = Mixer.GENERAL
    rank: int | None = 0
    schedule: Schedule = Schedule.GROUPED
    block: int = 32
    steps: int = 600
    learning_rate: float = 0.16
    seed: int = 0
    forms: tuple[str, ...] = (SPM.kind,)
    store: Codec = FLOAT32
    fewest: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"`seed` {self.seed}: must be between 0 and {LARGEST_SEED}")
        if self.rank is not None and self.rank < 0:
            raise UsageError(f"`rank` {self.rank}: the rank of a low-rank term is 0 or more")
        if not self.forms:
            raise UsageError("`forms`: name one or more")
        has_angles = bool({SPM.kind, Sum.kind} & {*self.forms})
        if isinstance(self.store, Grid) and self.store.bits < SPM.fewest_bits and has_angles:
            raise UsageError(
                f"`bits` {bits_text(self.store)}: the angles of stages take {SPM.fewest_bits} to 8 bits; give more, or "
                "leave stages out of `forms`"
            )

        if isinstance(self.store, Grid) and isinstance(self.store.shared, int) and self.forms != (Dense.kind,):
            bits, _, block = bits_text(self.store).partition("/")
            raise UsageError(
                f"`bits` {bits}/{block}: only rows of dense maps and tables have a scale for every {block} numbers; "
                f"give {bits}"
            )

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """The mixers to try."""
        return (Mixer.GENERAL, Mixer.ROTATION) if self.mixer is None else (self.mixer,)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of forms to try: those asked for, and what `rank` asks for beside an SPM."""
        if SPM.kind not in self.forms or self.rank == 0:
            return self.forms
        if self.rank is None:
            return tuple(dict.fromkeys((*self.forms, Sum.kind, LowRank.kind)))
        return tuple(Sum.kind if kind == SPM.kind else kind for kind in self.forms)

    def spm(self, out_features: int, in_features: int) -> SPM:
        """Return the SPM for a weight of this shape; where the mixer is open, of general stages."""
        return build_spm(
            in_features,
            out_features,
            stages=self.stages,
            mixer=self.mixers[0],
            schedule=self.schedule,
            block=self.block,
            seed=self.seed,
        )

    def reference(self, out_features: int, in_features: int) -> Form:
        """Return the form whose size all others keep to: the SPM, with the low-rank term that is asked for."""
        spm = self.spm(out_features, in_features)
        if not self.rank:
            return spm
        return Sum((spm, LowRank(in_features, out_features, min(self.rank, in_features, out_features))))

    def numbers(self, out_features: int, in_features: int) -> int:
        """Return how many numbers are stored at most for a weight of this shape."""
        return numbers_of(self.reference(out_features, in_features).stored(FLOAT32))


# Fields of FitSettings by how long a fit may take; what each reaches on MiniLM is in docs/measurements.md.
EFFORTS: Mapping[str, Mapping[str, Any]] = {
    "fast": {"steps": 100},
    "balanced": {"steps": 600},
    "best": {"steps": 1500, "mixer": None, "rank": None},
}
