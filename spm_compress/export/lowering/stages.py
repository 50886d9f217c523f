"""Gather, Mul, Add for every stage: the portable form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from spm_compress.export.lowering.emitter import Emitter
from spm_compress.export.lowering.interface import Layout, write_function
from spm_compress.export.lowering.low_rank import with_low_rank
from spm_compress.operator.pairing import IDENTITY, Shuffle
from spm_compress.operator.structure import Structure

__all__ = ["Stages"]


@dataclass(frozen=True)
class Stages:
    """Runs a chain literally: y = direct * x + cross * x[partner], stage by stage."""

    layout: Layout = Layout.FEATURE_MAJOR

    @property
    def name(self) -> str:
        """Name in reports."""
        return f"stages {self.layout.value}"

    def function(self, structure: Structure, dtype: ir.DataType, opset: int, name: str) -> ir.Function:
        """Return the local function; inputs: x, then the arrays in the order of `number_names`."""

        def body(op: OpBuilder, x: ir.Value | None, arrays: Mapping[str, ir.Value]) -> ir.Value:
            assert x is not None
            emit = Emitter(op, structure, arrays, dtype, opset)
            return with_low_rank(emit, x, self.layout, lambda: _Body(emit, self.layout).map(x))

        return write_function(structure, body, opset, name)


class _Body:
    """Emits the stages; values are (features, rows) or (rows, features) by layout."""

    def __init__(self, emit: Emitter, layout: Layout) -> None:
        self.emit = emit
        self.op = emit.op
        self.layout = layout
        self.feature_major = layout is Layout.FEATURE_MAJOR
        self.axis = 0 if self.feature_major else 1

    def map(self, x: ir.Value) -> ir.Value:
        emit, structure = self.emit, self.emit.structure
        state = x
        if emit.is_narrow:  # the scales between canonical stages leave the range of 16 bits
            state = self.op.Cast(state, to=emit.precision)
        width = structure.in_features
        for i, chain in enumerate(structure.chains):
            state = self.resized(state, width, chain.width)
            state = self.chain(i, state)
            width = chain.width
        state = self.resized(state, width, structure.out_features)
        if emit.is_narrow:
            state = self.op.Cast(state, to=emit.dtype)
        return state

    def resized(self, state: ir.Value, width: int, new: int) -> ir.Value:
        if new == width:
            return state
        if new > width:
            source = self.op.Mod(self.emit.positions(new), self.emit.integer(width))
            return self.op.Gather(state, source, axis=self.axis)
        return self.emit.folded(state, width, new, self.layout)

    def chain(self, i: int, state: ir.Value) -> ir.Value:
        chain = self.emit.structure.chains[i]
        stage = 0
        for boundary, group in enumerate(chain.groups):
            state = self.scaled(i, boundary, state)
            state = self.ordered(i, boundary, state)
            for stride in group.strides:
                direct, cross = self.emit.coefficients(i, stage)
                swapped = self.op.Mul(self.swapped(chain.width, stride, state), self.along(cross))
                kept = state if direct is None else self.op.Mul(state, self.along(direct))
                state = self.op.Add(kept, swapped)
                stage += 1
        return self.scaled(i, len(chain.groups), state)

    def scaled(self, i: int, boundary: int, state: ir.Value) -> ir.Value:
        diagonal = self.emit.diagonal(i, boundary)
        return state if diagonal is None else self.op.Mul(state, self.along(diagonal))

    def ordered(self, i: int, boundary: int, state: ir.Value) -> ir.Value:
        op, emit = self.op, self.emit
        chain = emit.structure.chains[i]
        order = chain.groups[boundary].order
        if order == IDENTITY:
            return state
        if isinstance(order, Shuffle):
            columns = chain.width // order.rows
            if self.feature_major:
                grid = op.Reshape(state, emit.integers(order.rows, columns, -1))
                return op.Reshape(op.Transpose(grid, perm=[1, 0, 2]), emit.integers(chain.width, -1))
            grid = op.Reshape(state, emit.integers(-1, order.rows, columns))
            return op.Reshape(op.Transpose(grid, perm=[0, 2, 1]), emit.integers(-1, chain.width))
        return op.Gather(state, emit.ordered(i, boundary, emit.positions(chain.width)), axis=self.axis)

    def swapped(self, width: int, stride: int, state: ir.Value) -> ir.Value:
        """Return x[partner].

        Where all are paired, halves of neighbouring runs of `stride` change places: a Gather of two
        indices, so that simplifiers which fold constants have no table to write down.
        """
        op, emit = self.op, self.emit
        if width % (2 * stride):
            return op.Gather(state, emit.partners(width, stride), axis=self.axis)
        runs = (width // (2 * stride), 2, -1) if self.feature_major else (-1, 2, stride)
        swapped = op.Gather(op.Reshape(state, emit.integers(*runs)), emit.integers(1, 0), axis=1)
        return op.Reshape(swapped, emit.integers(*((width, -1) if self.feature_major else (-1, width))))

    def along(self, row: ir.Value) -> ir.Value:
        """Shape (features,) so that it multiplies every row of the state."""
        return self.op.Reshape(row, self.emit.integers(-1, 1)) if self.feature_major else row
