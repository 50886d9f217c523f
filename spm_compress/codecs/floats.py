"""Floating-point numbers of IEEE 754, each stored by itself."""

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

__all__ = ["FLOAT16", "FLOAT32", "Float"]


@dataclass(frozen=True)
class Float:
    """Numbers of 16 or 32 bits."""

    bits: int

    @property
    def name(self) -> str:
        """As `Codec.name`."""
        return f"float{self.bits}"

    @property
    def dtype(self) -> torch.dtype:
        """torch's name of the stored numbers."""
        return {16: torch.float16, 32: torch.float32}[self.bits]

    @property
    def largest(self) -> float:
        """As `Codec.largest`."""
        return float(torch.finfo(self.dtype).max)

    @property
    def most_harm(self) -> float:
        """As `Codec.most_harm`."""
        return 1.02

    def fits(self, shape: tuple[int, ...]) -> bool:
        """As `Codec.fits`."""
        del shape
        return True

    def part_names(self) -> tuple[str, ...]:
        """As `Codec.part_names`: the array itself."""
        return ("",)

    def encode(self, array: Tensor, metric: Tensor | None = None) -> Parts:
        """As `Codec.encode`; what is beyond the range becomes infinite."""
        del metric  # each number by itself, to the nearest
        return {"": array.to(self.dtype)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """As `Codec.decode`."""
        if parts[""].shape != shape:
            raise ValueError(f"an array of shape {tuple(parts[''].shape)}, not {shape}")
        if parts[""].dtype != self.dtype:
            raise ValueError(f"an array of {parts[''].dtype} is no {self.name}")
        return parts[""].float()

    def bytes(self, shape: tuple[int, ...]) -> int:
        """As `Codec.bytes`."""
        return math.prod(shape) * self.bits // 8

    def emit(self, op: OpBuilder, parts: Mapping[str, ir.Value], shape: tuple[int, ...]) -> ir.Value:
        """As `Codec.emit`."""
        import onnx_ir as ir

        return parts[""] if self.bits == 32 else op.Cast(parts[""], to=ir.DataType.FLOAT)


FLOAT32, FLOAT16 = Float(32), Float(16)
