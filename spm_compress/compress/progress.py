"""Who hears how far a fit is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.fitting.settings import StepReport

__all__ = ["Progress", "Silent"]


class Progress(Protocol):
    """Hears how far a fit is. All calls come from the thread that fits."""

    def begin(self, layers: int) -> None:
        """The number of weights to fit is known."""

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        """These weights, of one shape, are taken in hand."""

    def step(self, report: StepReport) -> None:
        """The batch in hand has come this far."""

    def layer(self, layer: FittedLayer) -> None:
        """One weight is done."""


class Silent:
    """A Progress that tells nobody."""

    def begin(self, layers: int) -> None:
        """Ignore."""

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        """Ignore."""

    def step(self, report: StepReport) -> None:
        """Ignore."""

    def layer(self, layer: FittedLayer) -> None:
        """Ignore."""
