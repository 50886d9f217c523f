"""The ways to run a form in ONNX; every form says for itself what each of them is for it (`Form.lower`)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Blocks", "Dense", "Layout", "Lowering", "Stages", "lowerings"]


class Layout(enum.Enum):
    """Which axis the features stand on: (features, rows) or (rows, features)."""

    FEATURE_MAJOR = "feature-major"
    BATCH_MAJOR = "batch-major"


@dataclass(frozen=True)
class _OnActivations:
    """What takes activations, in one of the layouts."""

    way: ClassVar[str]

    layout: Layout = Layout.FEATURE_MAJOR

    @property
    def name(self) -> str:
        """Name in reports; its first word is the one that `lowering` takes."""
        return f"{self.way} {self.layout.value}"


@dataclass(frozen=True)
class Stages(_OnActivations):
    """Literally as the form is defined: for a chain Gather, Mul and Add, stage by stage."""

    way: ClassVar[str] = "stages"


@dataclass(frozen=True)
class Blocks(_OnActivations):
    """In few batched products: a runtime that folds constants multiplies stages out to blocks when it loads."""

    way: ClassVar[str] = "blocks"


@dataclass(frozen=True)
class Dense:
    """As the product that was there, with a matrix that is made of the stored numbers when the model is loaded.

    layout: None, as there is no x; what is written returns the matrix (out, in).
    """

    name: str = "dense"
    layout: None = None


Lowering = Stages | Blocks | Dense


def lowerings() -> Sequence[Lowering]:
    """Return every lowering there is."""
    return [*(Stages(layout) for layout in Layout), *(Blocks(layout) for layout in Layout), Dense()]
