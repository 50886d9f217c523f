"""Codes of a few bits in bytes, packed so that plain arithmetic unpacks them, in torch and in ONNX at opset 11.

Of a row of n codes below b, k share a byte, b^k <= 256: of w = n / k bytes, byte i holds codes i, i + w, i + 2w, ...;
code i + jw is floor(byte / b^j) mod b. So a whole run of bytes is unpacked to codes that stand in a row. Codes of 3, 5,
6 or 7 bits are a sum of digits of 1, 2 and 4 bits, each digit in bytes of its own, one run of bytes after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxscript import OpBuilder

__all__ = ["TERNARY", "Digit", "Packing", "of_bits"]


@dataclass(frozen=True)
class Digit:
    """What of a code one run of bytes holds: floor(code / weight) mod base, `count` of them in a byte."""

    base: int
    count: int
    weight: int = 1

    @property
    def powers(self) -> list[int]:
        """What a byte is divided by for each of its digits."""
        return [self.base**j for j in range(self.count)]

    def width(self, features: int) -> int:
        """Return how many bytes hold the digits of so many codes."""
        return -(-features // self.count)


@dataclass(frozen=True)
class Packing:
    """How codes below `levels` are laid out in bytes."""

    levels: int
    digits: tuple[Digit, ...]

    def width(self, features: int) -> int:
        """Return how many bytes hold a row of so many codes."""
        return sum(digit.width(features) for digit in self.digits)

    def bytes(self, shape: tuple[int, ...]) -> int:
        """Return how many bytes hold the codes of an array of this shape."""
        return math.prod(shape[:-1]) * self.width(shape[-1])

    def pack(self, codes: Tensor) -> Tensor:
        """Return codes (..., n), whole numbers of any dtype, as uint8 (..., width(n))."""
        codes = codes.to(torch.int16)
        runs = []
        for digit in self.digits:
            own = codes.div(digit.weight, rounding_mode="floor") % digit.base
            missing = digit.width(codes.shape[-1]) * digit.count - codes.shape[-1]
            grouped = torch.nn.functional.pad(own, (0, missing)).reshape(*codes.shape[:-1], digit.count, -1)
            runs.append((grouped * torch.tensor(digit.powers, dtype=torch.int16)[:, None]).sum(-2).to(torch.uint8))
        return torch.cat(runs, -1)

    def unpack(self, packed: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return the codes of an array of this shape, int16, of bytes (..., width(n)).

        Raises ValueError for bytes that are not those of such an array.
        """
        *lead, features = shape
        if packed.dtype != torch.uint8 or packed.shape != (*lead, self.width(features)):
            raise ValueError(f"{packed.dtype} of shape {tuple(packed.shape)} holds no codes of {shape}")
        codes = torch.zeros(shape, dtype=torch.int16)
        widths = [digit.width(features) for digit in self.digits]
        for digit, run in zip(self.digits, torch.split(packed, widths, -1), strict=True):
            powers = torch.tensor(digit.powers, dtype=torch.int16)[:, None]
            own = run.to(torch.int16).unsqueeze(-2).div(powers, rounding_mode="floor") % digit.base
            codes += digit.weight * own.flatten(-2)[..., :features]
        if int(codes.max() if codes.numel() else 0) >= self.levels:
            raise ValueError(f"codes of {self.levels} levels up to {int(codes.max())}")
        return codes

    def emit(self, op: OpBuilder, packed: ir.Value, lead: Sequence[int], features: int) -> ir.Value:
        """Return `unpack` as ONNX, float32. lead: dimensions of `packed` before the last; -1 for one that varies."""
        import onnx_ir as ir  # ONNX only where it is written

        from spm_compress.codecs.constants import integers, number

        total: ir.Value | None = None
        as_float = op.Cast(packed, to=ir.DataType.FLOAT)
        start = 0
        for digit in self.digits:
            width = digit.width(features)
            run = as_float
            if len(self.digits) > 1:
                run = op.Slice(as_float, integers(op, start), integers(op, start + width), integers(op, -1))
            start += width
            own = run
            if digit.count > 1:
                row = op.Reshape(run, integers(op, *lead, 1, width))
                if digit.count == 2:
                    above = op.Floor(op.Mul(row, number(op, 1 / digit.base)))
                    own = op.Concat(op.Sub(row, op.Mul(above, number(op, digit.base))), above, axis=-2)
                else:
                    # Half a unit more, so that no product with a power of a third falls below a whole number.
                    row = op.Add(row, number(op, 0.5))
                    below = op.Floor(op.Mul(row, _column(op, [1 / power for power in digit.powers])))
                    above = op.Floor(op.Mul(row, _column(op, [1 / power / digit.base for power in digit.powers])))
                    own = op.Sub(below, op.Mul(above, number(op, digit.base)))
                own = op.Reshape(own, integers(op, *lead, width * digit.count))
            if width * digit.count > features:
                own = op.Slice(own, integers(op, 0), integers(op, features), integers(op, -1))
            if digit.weight > 1:
                own = op.Mul(own, number(op, digit.weight))
            total = own if total is None else op.Add(total, own)
        assert total is not None
        return total


def of_bits(bits: int) -> Packing:
    """Return the packing of codes of 1 to 8 bits, without a bit lost but at the end of a row."""
    digits, weight = [], 1
    for width in (4, 2, 1) if bits < 8 else (8,):
        if bits & width:
            digits.append(Digit(1 << width, 8 // width, weight))
            weight <<= width
    assert math.prod(digit.base for digit in digits) == 1 << bits
    return Packing(1 << bits, tuple(digits))


TERNARY = Packing(3, (Digit(3, 5),))


def _column(op: OpBuilder, values: Sequence[float]) -> ir.Value:
    """Return a float32 tensor (k, 1)."""
    import onnx_ir as ir

    found: ir.Value = op.Constant(value=ir.tensor([[value] for value in values], dtype=ir.DataType.FLOAT))
    return found
