"""What every codec is: a way to store an array of numbers, and the arithmetic that makes the numbers again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript import OpBuilder

__all__ = ["Codec", "Parts", "StoredArray", "part_key"]

# Name of a part -> tensor; "" is the name of a part that stands alone.
Parts = Mapping[str, Tensor]


class Codec(Protocol):
    """How an array of numbers is stored. A codec is frozen and hashable, and its name says all of it.

    `decode` of `encode` is what every user of the array computes with: torch, ONNX and the errors of a report.
    """

    @property
    def name(self) -> str:
        """What a manifest says of it; `read_codec` finds the codec by it."""

    @property
    def largest(self) -> float:
        """The largest magnitude that it can store."""

    @property
    def most_harm(self) -> float:
        """By which factor it may raise the error of a layer; infinite where few bits are what was asked for."""

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return whether it can store an array of a shape."""

    def encode(self, array: Tensor, metric: Tensor | None = None) -> Parts:
        """Return what is stored of a floating-point array of any shape that it `fits`.

        metric: (n, n), positive definite, of an array (m, n): so that a matrix loses least of its outputs,
        tr(D metric D^T) with D the rounding, instead of least of its numbers.
        """

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """Return the array of this shape that the parts stand for, float32.

        Raises ValueError for parts that cannot be those of this codec.
        """

    def part_names(self) -> tuple[str, ...]:
        """Return the names of the parts, in their order."""

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that the parts of an array of this shape take."""

    def emit(self, op: OpBuilder, parts: Mapping[str, ir.Value], shape: tuple[int, ...]) -> ir.Value:
        """Return `decode` as ONNX: the float32 value of this shape that the stored parts stand for.

        Parts of several arrays of two or more axes are given with one axis more, as is the shape: -1 before it.
        """


@dataclass(frozen=True)
class StoredArray:
    """One array as it is stored."""

    codec: Codec
    parts: Parts
    shape: tuple[int, ...]

    @classmethod
    def of(cls, codec: Codec, array: Tensor, metric: Tensor | None = None) -> StoredArray:
        """Return an array as a codec stores it; metric as in `Codec.encode`."""
        return cls(codec, codec.encode(array.detach(), metric), tuple(array.shape))

    def decoded(self) -> Tensor:
        """Return the numbers, float32."""
        return self.codec.decode(self.parts, self.shape)

    def rows(self, start: int, stop: int) -> StoredArray:
        """Return some rows of a matrix; no byte holds numbers of two, and what has one row is shared by all."""
        parts = {
            name: part[start:stop] if part.dim() == 2 and len(part) == self.shape[0] else part
            for name, part in self.parts.items()
        }
        return StoredArray(self.codec, parts, (stop - start, *self.shape[1:]))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


def part_key(array: str, part: str) -> str:
    """Return the name of an array's part among the parts of other arrays: ARRAY, or ARRAY.PART."""
    return f"{array}.{part}" if part else array
