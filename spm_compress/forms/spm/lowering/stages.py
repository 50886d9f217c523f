"""Gather, Mul, Add for every stage: the portable way."""

from __future__ import annotations

import onnx_ir as ir

from spm_compress.forms.lowering import Layout
from spm_compress.forms.spm.lowering.chain_emitter import ChainEmitter
from spm_compress.forms.spm.pairing import IDENTITY, Shuffle

__all__ = ["StagesBody"]


class StagesBody:
    """Emits the stages; values are (features, rows) or (rows, features) by layout."""

    def __init__(self, chains: ChainEmitter, layout: Layout) -> None:
        self.chains = chains
        self.emit = chains.emit
        self.op = chains.op
        self.layout = layout
        self.feature_major = layout is Layout.FEATURE_MAJOR
        self.axis = 0 if self.feature_major else 1

    def map(self, x: ir.Value) -> ir.Value:
        """Return the map of x."""
        emit, structure = self.emit, self.chains.structure
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
        """Repeat or fold the features."""
        if new == width:
            return state
        if new > width:
            source = self.op.Mod(self.emit.positions(new), self.emit.integer(width))
            return self.op.Gather(state, source, axis=self.axis)
        return self.chains.folded(state, width, new, self.layout)

    def chain(self, i: int, state: ir.Value) -> ir.Value:
        """Run one chain."""
        chain = self.chains.structure.chains[i]
        stage = 0
        for boundary, group in enumerate(chain.groups):
            state = self.scaled(i, boundary, state)
            state = self.ordered(i, boundary, state)
            for stride in group.strides:
                state = self.mixed(i, stage, stride, state)
                stage += 1
            if group.stages:
                flat = (chain.width, -1) if self.feature_major else (-1, chain.width)
                state = self.op.Reshape(state, self.emit.integers(*flat))
        return self.scaled(i, len(chain.groups), state)

    def mixed(self, i: int, stage: int, stride: int, state: ir.Value) -> ir.Value:
        """Run one stage, on a state however it is cut up; return it cut up into pairs.

        Where all are paired, halves of neighbouring runs of `stride` change places: a Gather of two
        indices, so that simplifiers which fold constants have no table to write down.
        """
        op, emit, width = self.op, self.emit, self.chains.structure.chains[i].width
        pairs: tuple[int, ...] = (width // (2 * stride), 2, stride)
        partner = emit.integers(1, 0)
        if width % (2 * stride):
            pairs, partner = (1, width), self.chains.partners(width, stride)
        before = (1, 1, *pairs, -1) if self.feature_major else (-1, 1, *pairs)
        return self.chains.mixed(op.Reshape(state, emit.integers(*before)), partner, self.shaped(i, stage, pairs))

    def shaped(self, i: int, stage: int, pairs: tuple[int, ...]) -> list[ir.Value]:
        """Return the coefficients of a stage, shaped to multiply a state that is cut up into pairs."""
        shape = self.emit.integers(*pairs, 1) if self.feature_major else self.emit.integers(*pairs)
        given = [f"{i}.{name}" for name in ("off_diagonal", "diagonal")]
        return [self.op.Reshape(self.row(name, stage), shape) for name in given if self.emit.has_constant(name)]

    def scaled(self, i: int, boundary: int, state: ir.Value) -> ir.Value:
        """Scale the features, if they are scaled there."""
        scales = self.chains.structure.chains[i].scales
        if boundary not in scales:
            return state
        return self.op.Mul(state, self.along(self.row(f"{i}.scales", scales.index(boundary))))

    def row(self, name: str, index: int) -> ir.Value:
        """Return one row (width,) of what `ChainEmitter.stage_by_stage` has made."""
        return self.op.Gather(self.emit.constant(name), self.emit.integer(index), axis=0)

    def ordered(self, i: int, boundary: int, state: ir.Value) -> ir.Value:
        """Put the features in the order of a group."""
        op, emit = self.op, self.emit
        chain = self.chains.structure.chains[i]
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
        return op.Gather(state, self.chains.ordered(i, boundary, emit.positions(chain.width)), axis=self.axis)

    def along(self, row: ir.Value) -> ir.Value:
        """Shape (features,) so that it multiplies every row of the state."""
        return self.op.Reshape(row, self.emit.integers(-1, 1)) if self.feature_major else row
