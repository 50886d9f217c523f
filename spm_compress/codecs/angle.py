"""Angles, evenly rounded: no scale, no range to calibrate.

Of the coefficients of a mixing stage only the direction has to be stored (`Gauge.POLAR`), half a turn with a code for
the middle of each part: none stands for both ends. Angles of rotations take a whole turn, which meets itself, and zero
is one of the codes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.codecs.codec import Parts
from spm_compress.codecs.packing import Packing, of_bits

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript import OpBuilder

__all__ = ["Angle"]


@dataclass(frozen=True)
class Angle:
    """Angles in [0, pi), or in (-pi, pi] with `whole`, of 4 to 8 bits."""

    bits: int
    whole: bool = False

    @property
    def name(self) -> str:
        """As `Codec.name`."""
        return f"angle({self.bits},whole)" if self.whole else f"angle({self.bits})"

    @property
    def largest(self) -> float:
        """As `Codec.largest`: angles are taken modulo their period."""
        return math.pi

    @property
    def most_harm(self) -> float:
        """As `Codec.most_harm`."""
        return math.inf

    @property
    def _packing(self) -> Packing:
        return of_bits(self.bits)

    @property
    def _unit(self) -> float:
        return (2 if self.whole else 1) * math.pi / (1 << self.bits)

    def part_names(self) -> tuple[str, ...]:
        """As `Codec.part_names`."""
        return ("codes",)

    def bytes(self, shape: tuple[int, ...]) -> int:
        """As `Codec.bytes`."""
        return self._packing.bytes(shape)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """As `Codec.fits`."""
        del shape
        return True

    def encode(self, array: Tensor, metric: Tensor | None = None) -> Parts:
        """As `Codec.encode`."""
        del metric
        return {"codes": self._packing.pack(self._codes(array))}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """As `Codec.decode`."""
        return self._angles(self._packing.unpack(parts["codes"], shape).float())

    def rounded(self, array: Tensor) -> Tensor:
        """Return `decode` of `encode`, nothing packed in between."""
        return self._angles(self._codes(array).float())

    def emit(self, op: OpBuilder, parts: Mapping[str, ir.Value], shape: tuple[int, ...]) -> ir.Value:
        """As `Codec.emit`."""
        from spm_compress.codecs.constants import number  # ONNX only where it is written

        codes = self._packing.emit(op, parts["codes"], shape[:-1], shape[-1])
        if self._middle:
            codes = op.Add(codes, number(op, self._middle))
        found: ir.Value = op.Mul(codes, number(op, self._unit))
        return found

    def _codes(self, array: Tensor) -> Tensor:
        turns = array.double() / self._unit
        return (turns.round() if self.whole else turns.floor()).remainder(1 << self.bits)

    def _angles(self, codes: Tensor) -> Tensor:
        return (codes + self._middle) * torch.tensor(self._unit)

    @property
    def _middle(self) -> float:
        return 0.0 if self.whole else 0.5
