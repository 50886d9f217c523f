"""The ways to run a form in ONNX; every form says for itself what each of them is for it (`Form.lower`)."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Blocks", "Dense", "Int8", "Layout", "Lowering", "NBits", "Rows", "Stages", "lowerings"]


class Layout(enum.Enum):
    """Where the features stand: (features, rows), (rows, features), or last behind whatever dimensions there are."""

    FEATURE_MAJOR = "feature-major"
    BATCH_MAJOR = "batch-major"
    FEATURES_LAST = "features-last"


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

    layout: None, as there is no x; what is written returns the matrix (out, in). FEATURES_LAST for a matrix that comes
    in pieces (`forms.folding`): what is written is the product.
    """

    name: ClassVar[str] = "dense"

    layout: Layout | None = None


@dataclass(frozen=True)
class Int8:
    """As a product of whole numbers: those of the activations are found at every run, those of the map at load.

    Only for a dense map; activations are rounded to 8 bits.
    """

    name: str = "int8"
    layout: Layout = Layout.FEATURES_LAST


@dataclass(frozen=True)
class Rows:
    """Not as a product: rows of a dense map, a lookup table, by indices of any shape in the place of activations."""

    name: str = "rows"
    layout: Layout = Layout.FEATURES_LAST


@dataclass(frozen=True)
class NBits:
    """As a product with 4 bits a weight, which ONNX Runtime keeps packed in memory (`MatMulNBits`).

    Only for a dense map whose rows are whole blocks; activations are rounded to 8 bits, block by block.
    """

    name: str = "nbits"
    layout: Layout = Layout.FEATURES_LAST


Lowering = Stages | Blocks | Dense | Int8 | Rows | NBits


def lowerings() -> Sequence[Lowering]:
    """Return the lowerings that every form has, the fastest of which is found out by timing."""
    layouts = (Layout.FEATURE_MAJOR, Layout.BATCH_MAJOR)
    return [*(Stages(layout) for layout in layouts), *(Blocks(layout) for layout in layouts), Dense()]
