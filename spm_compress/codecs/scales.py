"""Positive or negative scales in float16, relative to a power of two that stands beside them in float32.

So they are in range whatever the scale of the weights; what is below a ten-millionth of the largest is lost. A power of
two changes no digit, so that what was decoded is encoded as it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.codecs.codec import Parts

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript import OpBuilder

__all__ = ["SCALES", "Scales", "decoded_scales", "emitted_scales", "encoded_scales"]


def encoded_scales(scales: Tensor) -> dict[str, Tensor]:
    """Return `scales`, float16 of the same shape, and `unit`, float32 (1,)."""
    largest = scales.abs().max().float().reshape(1) if scales.numel() else scales.new_zeros(1).float()
    exponent = torch.frexp(torch.where(largest > 0, largest, 1)).exponent
    unit = torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 127))
    return {"scales": (scales / unit).half(), "unit": unit}


def decoded_scales(parts: Parts, shape: tuple[int, ...]) -> Tensor:
    """Return the scales, float32. Raises ValueError for parts of another dtype or shape."""
    scales, unit = parts["scales"], parts["unit"]
    is_typed = scales.dtype == torch.float16 and unit.dtype == torch.float32
    if not is_typed or unit.shape != (1,) or scales.shape != shape:
        raise ValueError(f"scales of {scales.dtype} {tuple(scales.shape)}, unit {unit.dtype} {tuple(unit.shape)}")
    return scales.float() * unit


def emitted_scales(op: OpBuilder, parts: Mapping[str, ir.Value], rank: int) -> ir.Value:
    """Return `decoded_scales` as ONNX; rank: of the scales, their first axis that of several arrays if there are."""
    import onnx_ir as ir  # ONNX only where it is written

    from spm_compress.codecs.constants import integers

    unit = op.Reshape(parts["unit"], integers(op, -1, *[1] * (rank - 1)))
    found: ir.Value = op.Mul(op.Cast(parts["scales"], to=ir.DataType.FLOAT), unit)
    return found


@dataclass(frozen=True)
class Scales:
    """An array of scales as a codec by itself."""

    name: str = "scales"
    largest: float = 2.0**126
    most_harm: float = 1.02

    def part_names(self) -> tuple[str, ...]:
        """As `Codec.part_names`."""
        return ("scales", "unit")

    def bytes(self, shape: tuple[int, ...]) -> int:
        """As `Codec.bytes`."""
        return 2 * math.prod(shape) + 4

    def fits(self, shape: tuple[int, ...]) -> bool:
        """As `Codec.fits`."""
        del shape
        return True

    def encode(self, array: Tensor, metric: Tensor | None = None) -> Parts:
        """As `Codec.encode`."""
        del metric
        return encoded_scales(array.float())

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """As `Codec.decode`."""
        return decoded_scales(parts, shape)

    def emit(self, op: OpBuilder, parts: Mapping[str, ir.Value], shape: tuple[int, ...]) -> ir.Value:
        """As `Codec.emit`."""
        return emitted_scales(op, parts, len(shape))


SCALES = Scales()
