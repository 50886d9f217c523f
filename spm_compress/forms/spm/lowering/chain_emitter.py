"""The parts that lowerings of chains are written with: orders and partners as formulas, stages, scales.

Orders and partners that follow a formula are written as that formula (Range, Mul, Mod), so the file
holds the numbers and no index tables; runtimes fold them to constants when they load the model.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from spm_compress.forms.emitter import Emitter
from spm_compress.forms.lowering import Layout
from spm_compress.forms.spm.lowering.stage_function import stage_function
from spm_compress.forms.spm.pairing import IDENTITY, Affine, Shuffle, pair_count
from spm_compress.forms.spm.structure import Gauge, Mixer

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["ChainEmitter"]


class ChainEmitter:
    """Emits what the chains of one SPM need, each value once in a function."""

    def __init__(self, emit: Emitter, structure: SPM) -> None:
        self.emit = emit
        self.op = emit.op
        self.structure = structure
        self._stage_function = functools.cache(functools.partial(stage_function, emit.opset))

    def partners(self, width: int, stride: int) -> ir.Value:
        """Return (width,) position xor stride; a position without partner keeps itself."""
        emit = self.emit

        def xor() -> ir.Value:
            op, position = self.op, emit.positions(width)
            bit = op.Mod(op.Div(position, emit.integer(stride)), emit.integer(2))
            other = op.Sub(op.Add(position, emit.integer(stride)), op.Mul(bit, emit.integer(2 * stride)))
            if 2 * pair_count(width, stride) == width:
                return other
            return op.Where(op.Less(other, emit.integer(width)), other, position)

        return emit.once(("partners", width, stride), xor)

    def ordered(self, i: int, boundary: int, position: ir.Value) -> ir.Value:
        """Return, for positions after a group's order, those before it."""
        op, emit, chain = self.op, self.emit, self.structure.chains[i]
        order = chain.groups[boundary].order
        if order == IDENTITY:
            return position
        match order:
            case Affine():
                scaled = op.Mul(position, emit.integer(order.multiplier))
                return op.Mod(op.Add(scaled, emit.integer(order.offset)), emit.integer(chain.width))
            case Shuffle():
                stride = emit.integer(chain.width // order.rows)
                row, column = op.Mod(position, emit.integer(order.rows)), op.Div(position, emit.integer(order.rows))
                return op.Add(op.Mul(row, stride), column)
            case _:
                table = emit.table(f"{i}.order.{boundary}")
                return op.Cast(op.Gather(table, position, axis=0), to=ir.DataType.INT64)

    def mixed(self, state: ir.Value, partner: ir.Value, coefficients: Sequence[ir.Value]) -> ir.Value:
        """Call the function of one stage.

        state: pairs on its fourth axis; coefficients: of `coefficients`, shaped to multiply it.
        """
        function = self._stage_function(has_diagonal=len(coefficients) > 1)
        return self.emit.call(function, state, partner, *coefficients)

    def coefficients(self, i: int, stage: int) -> list[ir.Value]:
        """Return the off-diagonal coefficients (maps, width) of a stage, and the diagonal ones unless all one."""
        chain = self.structure.chains[i]
        width, stride = chain.width, chain.strides[stage]
        if self.structure.mixer is Mixer.ROTATION:
            before = sum(pair_count(width, earlier) for earlier in chain.strides[:stage])
            return self._rotation(i, width, stride, before)
        index = self.emit.integer(stage)
        off_diagonal, *diagonal = (self.op.Gather(array, index, axis=1) for array in self.of_all_stages(i))
        if self.structure.gauge is Gauge.POLAR and 2 * pair_count(width, stride) < width:
            is_alone = self.op.Equal(self.partners(width, stride), self.emit.positions(width))
            diagonal = [self.op.Where(is_alone, self.emit.number(1.0), each) for each in diagonal]
        return [self._where_paired(width, stride, off_diagonal), *diagonal]

    def of_all_stages(self, i: int) -> list[ir.Value]:
        """Return what is stored of the general stages of chain i, (maps, stages, width), as `coefficients`.

        Positions without a partner have any numbers there.
        """
        emit = self.emit
        match self.structure.gauge:
            case Gauge.POLAR:
                directions = emit.numbers(f"{i}.directions")
                sin = emit.once(("sin", emit.prefix, i), lambda: self.op.Sin(directions))
                return [sin, emit.once(("cos", emit.prefix, i), lambda: self.op.Cos(directions))]
            case Gauge.FREE:
                return [emit.numbers(f"{i}.off_diagonal"), emit.numbers(f"{i}.diagonal")]
            case Gauge.CANONICAL:
                return [emit.numbers(f"{i}.off_diagonal")]

    def _rotation(self, i: int, width: int, stride: int, before: int) -> list[ir.Value]:
        op, emit, count = self.op, self.emit, pair_count(width, stride)
        if not count:
            return [emit.filled(0.0, width)]
        angles = emit.numbers(f"{i}.angles")  # (maps, angles)
        own = op.Slice(angles, emit.integers(before), emit.integers(before + count), emit.integers(1))
        position = emit.positions(width)
        rank = op.Add(
            op.Mul(op.Div(position, emit.integer(2 * stride)), emit.integer(stride)),
            op.Mod(position, emit.integer(stride)),
        )
        angle = op.Gather(own, emit.at_most(rank, count - 1), axis=1)
        upper = op.Greater(position, self.partners(width, stride))
        signed = self._where_paired(width, stride, op.Where(upper, angle, op.Neg(angle)))
        return [op.Sin(signed), op.Cos(signed)]

    def _where_paired(self, width: int, stride: int, values: ir.Value) -> ir.Value:
        op = self.op
        if 2 * pair_count(width, stride) == width:
            return values
        paired = op.Not(op.Equal(self.partners(width, stride), self.emit.positions(width)))
        return op.Mul(values, op.Cast(paired, to=self.emit.precision))

    def scale(self, i: int, boundary: int) -> ir.Value | None:
        """Return what the features of chain i are scaled by before group `boundary`, (maps, width), if they are."""
        scales = self.structure.chains[i].scales
        if boundary not in scales:
            return None
        return self.op.Gather(self.emit.numbers(f"{i}.scales"), self.emit.integer(scales.index(boundary)), axis=1)

    def stage_by_stage(self) -> dict[str, ir.Value]:
        """Return the coefficients of all stages and the scales: CHAIN.off_diagonal, ..., each (maps * rows, width)."""
        found = {}
        for i, chain in enumerate(self.structure.chains):
            stages = [self.coefficients(i, stage) for stage in range(chain.stages)]
            for name, rows in zip(("off_diagonal", "diagonal"), zip(*stages, strict=True), strict=False):
                each = [self.op.Reshape(row, self.emit.integers(-1, 1, chain.width)) for row in rows]
                found[f"{i}.{name}"] = self.emit.in_a_row(self.op.Concat(*each, axis=1), (chain.stages, chain.width))
            if chain.scales:
                found[f"{i}.scales"] = self.emit.decoded(f"{i}.scales")
        return found

    def folded(self, state: ir.Value, width: int, new: int, layout: Layout) -> ir.Value:
        """Sum the features of a state that are equal modulo `new`, which is less than `width`."""
        op, emit, feature_major = self.op, self.emit, layout is Layout.FEATURE_MAJOR
        folds = -(-width // new)
        missing = folds * new - width
        if missing:
            state = op.Pad(state, emit.integers(*((0, 0, missing, 0) if feature_major else (0, 0, 0, missing))))
        shaped = op.Reshape(state, emit.integers(*((folds, new, -1) if feature_major else (-1, folds, new))))
        return emit.summed(shaped, 0 if feature_major else 1, keepdims=0)
