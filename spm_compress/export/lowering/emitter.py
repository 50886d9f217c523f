"""The parts that lowerings are written with: positions as formulas, mixers as coefficients.

Orders and partners that follow a formula are written as that formula (Range, Mul, Mod), so the file
holds the numbers and no index tables; runtimes fold them to constants when they load the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.export.lowering.interface import Layout
from spm_compress.operator.pairing import IDENTITY, Affine, Shuffle, pair_count
from spm_compress.operator.structure import Mixer, Structure

__all__ = ["Emitter"]

_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Emitter:
    """Emits the values that one function needs, each once.

    dtype: of the activations; precision: in which coefficients are computed, never below float32, as
    canonical numbers span more than 16 bits hold.
    """

    def __init__(
        self, op: OpBuilder, structure: Structure, arrays: Mapping[str, ir.Value], dtype: ir.DataType, opset: int
    ) -> None:
        self.op = op
        self.opset = opset
        self.structure = structure
        self.arrays = arrays
        self.dtype = dtype
        self.is_narrow = dtype in _NARROW
        self.precision = ir.DataType.FLOAT if self.is_narrow else dtype
        self.known: dict[tuple[str | int, ...], ir.Value] = {}

    def once(self, key: tuple[str | int, ...], make: Callable[[], ir.Value]) -> ir.Value:
        """Return what `make` emitted for this key the first time."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def integer(self, value: int) -> ir.Value:
        """Return an int64 scalar."""
        return self.once(("integer", value), lambda: self.op.Constant(value=ir.tensor(value, dtype=ir.DataType.INT64)))

    def integers(self, *values: int) -> ir.Value:
        """Return an int64 vector."""
        # A tensor, not value_ints: up to 1.24, ONNX Runtime refuses a function whose Pad reads those.
        return self.once(
            ("integers", *values), lambda: self.op.Constant(value=ir.tensor(values, dtype=ir.DataType.INT64))
        )

    def number(self, value: float) -> ir.Value:
        """Return a scalar in the precision of the coefficients."""
        return self.once(("number", str(value)), lambda: self.op.Constant(value=ir.tensor(value, dtype=self.precision)))

    def positions(self, width: int) -> ir.Value:
        """Return (width,) 0, 1, 2, ..."""
        return self.once(
            ("positions", width),
            lambda: self.op.Range(self.integer(0), self.integer(width), self.integer(1)),
        )

    def partners(self, width: int, stride: int) -> ir.Value:
        """Return (width,) position xor stride; a position without partner keeps itself."""

        def xor() -> ir.Value:
            op, position = self.op, self.positions(width)
            bit = op.Mod(op.Div(position, self.integer(stride)), self.integer(2))
            other = op.Sub(op.Add(position, self.integer(stride)), op.Mul(bit, self.integer(2 * stride)))
            if 2 * pair_count(width, stride) == width:
                return other
            return op.Where(op.Less(other, self.integer(width)), other, position)

        return self.once(("partners", width, stride), xor)

    def ordered(self, i: int, boundary: int, position: ir.Value) -> ir.Value:
        """Return, for positions after a group's order, those before it."""
        op, chain = self.op, self.structure.chains[i]
        order = chain.groups[boundary].order
        if order == IDENTITY:
            return position
        match order:
            case Affine():
                scaled = op.Mul(position, self.integer(order.multiplier))
                return op.Mod(op.Add(scaled, self.integer(order.offset)), self.integer(chain.width))
            case Shuffle():
                stride = self.integer(chain.width // order.rows)
                row, column = op.Mod(position, self.integer(order.rows)), op.Div(position, self.integer(order.rows))
                return op.Add(op.Mul(row, stride), column)
            case _:
                table = self.arrays[f"{i}.order.{boundary}"]  # int32
                return op.Cast(op.Gather(table, position, axis=0), to=ir.DataType.INT64)

    def coefficients(self, i: int, stage: int) -> tuple[ir.Value | None, ir.Value]:
        """Return direct (None stands for one) and cross of a stage of chain i, each (width,)."""
        chain = self.structure.chains[i]
        width, stride = chain.width, chain.strides[stage]
        match self.structure.mixer:
            case Mixer.ROTATION:
                before = sum(pair_count(width, earlier) for earlier in chain.strides[:stage])
                return self._turned(i, width, stride, before)
            case Mixer.GENERAL:
                direct: ir.Value | None = self.row(f"{i}.direct", stage)
            case Mixer.CANONICAL:
                direct = None
        return direct, self._where_paired(width, stride, self.row(f"{i}.cross", stage))

    def _turned(self, i: int, width: int, stride: int, before: int) -> tuple[ir.Value | None, ir.Value]:
        op, count = self.op, pair_count(width, stride)
        if not count:
            return None, op.Cast(op.Mul(self.positions(width), self.integer(0)), to=self.precision)
        angles = self.numbers(f"{i}.angles")
        own = op.Slice(angles, self.integers(before), self.integers(before + count), self.integers(0))
        position = self.positions(width)
        rank = op.Add(
            op.Mul(op.Div(position, self.integer(2 * stride)), self.integer(stride)),
            op.Mod(position, self.integer(stride)),
        )
        turn = op.Gather(own, self.at_most(rank, count - 1), axis=0)
        upper = op.Greater(position, self.partners(width, stride))
        turn = self._where_paired(width, stride, op.Where(upper, turn, op.Neg(turn)))
        return op.Cos(turn), op.Sin(turn)

    def _where_paired(self, width: int, stride: int, values: ir.Value) -> ir.Value:
        op = self.op
        if 2 * pair_count(width, stride) == width:
            return values
        paired = op.Not(op.Equal(self.partners(width, stride), self.positions(width)))
        return op.Mul(values, op.Cast(paired, to=self.precision))

    def diagonal(self, i: int, boundary: int) -> ir.Value | None:
        """Return the diagonal (width,) of chain i before group `boundary`, if one stands there."""
        diagonals = self.structure.chains[i].diagonals
        return self.row(f"{i}.diagonals", diagonals.index(boundary)) if boundary in diagonals else None

    def row(self, name: str, index: int) -> ir.Value:
        """Return one row of an array of numbers."""
        return self.op.Gather(self.numbers(name), self.integer(index), axis=0)

    def numbers(self, name: str) -> ir.Value:
        """Return an array of numbers in the precision of the coefficients."""
        return self.once(("numbers", name), lambda: self.op.Cast(self.arrays[name], to=self.precision))

    def folded(self, state: ir.Value, width: int, new: int, layout: Layout) -> ir.Value:
        """Sum the features of a state that are equal modulo `new`, which is less than `width`."""
        op, feature_major = self.op, layout is Layout.FEATURE_MAJOR
        folds = -(-width // new)
        missing = folds * new - width
        if missing:
            state = op.Pad(state, self.integers(*((0, 0, missing, 0) if feature_major else (0, 0, 0, missing))))
        shaped = op.Reshape(state, self.integers(*((folds, new, -1) if feature_major else (-1, folds, new))))
        return self.summed(shaped, 0 if feature_major else 1, keepdims=0)

    def summed(self, values: ir.Value, axis: int, *, keepdims: int) -> ir.Value:
        """Sum along an axis; which was an attribute before opset 13."""
        if self.opset < 13:
            return self.op.ReduceSum(values, axes=[axis], keepdims=keepdims)
        return self.op.ReduceSum(values, self.integers(axis), keepdims=keepdims)

    def at_most(self, position: ir.Value, last: int) -> ir.Value:
        """Return positions, those past the last one as the last one."""
        op = self.op  # Min takes no integers before opset 12
        return op.Where(op.Less(position, self.integer(last)), position, self.integer(last))
