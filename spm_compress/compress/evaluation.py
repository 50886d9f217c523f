"""The user's own measure of a model: a function that is called with it and returns a number, higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from spm_compress.errors import SpmError, UsageError, VerificationError, first_line

__all__ = ["Gate"]

Models = Mapping[str, Callable[[], nn.Module]]


@dataclass(frozen=True)
class Gate:
    """A function to score models with, and what the compressed one has to reach.

    min_score: least score; max_drop: most that it may be below the original's; None: not asked for.
    """

    name: str
    function: Callable[[nn.Module], Any]
    min_score: float | None = None
    max_drop: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("`min_score`", self.min_score), ("`max_drop`", self.max_drop)):
            if value is not None and math.isnan(value):
                raise UsageError(f"{option} nan: is no number; give one")

    def scores(self, models: Models) -> dict[str, float]:
        """Return the score of each model, made one after the other.

        Raises UsageError where the function raises, or returns no number.
        """
        return {which: self._score(which, make()) for which, make in models.items()}

    def check(self, scores: Mapping[str, float]) -> None:
        """Raise VerificationError if the last model does not reach what was asked, compared with `original`."""
        which, score = list(scores.items())[-1]
        if self.min_score is not None and not score >= self.min_score:
            raise VerificationError(
                f"{self.name}: the {which} model's {score:.4g} is below `min_score` {self.min_score}"
            )
        drop = scores["original"] - score
        if self.max_drop is not None and not drop <= self.max_drop:
            raise VerificationError(
                f"{self.name}: the {which} model's {score:.4g} is {drop:.4g} below the original's "
                f"{scores['original']:.4g}, more than `max_drop` {self.max_drop}"
            )

    def _score(self, which: str, model: nn.Module) -> float:
        try:
            with torch.no_grad():
                found = self.function(model.eval())
        except SpmError:
            raise
        except Exception as error:  # the user's own code
            raise UsageError(
                f"`evaluate` {self.name}: raises {type(error).__name__} on the {which} model: {first_line(error)}"
            ) from error
        try:
            score = float(found)
        except (TypeError, ValueError) as error:
            raise UsageError(f"`evaluate` {self.name}: fails on the {which} model ({first_line(error)})") from error
        if math.isnan(score):
            raise UsageError(f"`evaluate` {self.name}: returned NaN for the {which} model")
        return score
