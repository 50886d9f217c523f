"""Groups of stages as batched products with their blocks, which `operands` makes when the model is loaded."""

from __future__ import annotations

import math

import onnx_ir as ir

from spm_compress.forms.lowering import Layout
from spm_compress.forms.spm.lowering.chain_emitter import ChainEmitter
from spm_compress.forms.spm.lowering.operands import folds, operand_name, repeats
from spm_compress.forms.spm.lowering.slots import Slots, is_even
from spm_compress.forms.spm.pairing import IDENTITY, Shuffle
from spm_compress.forms.spm.plan import FusedPlan

__all__ = ["BlocksBody"]


class BlocksBody:
    """Emits the groups of one function, as `forms.spm.plan.FusedPlan` runs them."""

    def __init__(self, chains: ChainEmitter, layout: Layout) -> None:
        self.chains = chains
        self.emit = chains.emit
        self.structure = chains.structure
        self.op = chains.op
        self.layout = layout
        self.feature_major = layout is Layout.FEATURE_MAJOR
        self.axis = 0 if self.feature_major else 1
        self.tables = iter(FusedPlan(self.structure).tables)
        self.slots = Slots(chains)
        # How the features of a state are cut up at the moment; None: not at all.
        self.grids: dict[ir.Value, tuple[int, ...]] = {}
        self.is_folded = False  # the last group has summed what follows it

    def matrix(self) -> ir.Value:
        """Return the matrix (out, in): the map of the identity, or of the first group's blocks if it moves nothing."""
        width, group = self.structure.in_features, self.structure.chains[0].groups[0]
        stands = width == self.structure.chains[0].width and group.order == IDENTITY and is_even(group, width)
        return self.map(None if stands else self.emit.identity(width))

    def map(self, state: ir.Value | None) -> ir.Value:
        """Return the product of the map with a state of (in, rows), or (rows, in) by layout; None is the identity."""
        structure = self.structure
        width = structure.in_features
        for i, chain in enumerate(structure.chains):
            state = None if state is None else self.resized(state, width, chain.width)
            width = chain.width
            for boundary, group in enumerate(chain.groups):
                state = self.group(i, boundary, state)
                self.slots.leave(group)
        assert state is not None
        state = self.resized(state, width, structure.out_features)
        if next(self.tables) is not None:
            return self.gathered(state, self.slots.where(self.emit.positions(structure.out_features)))
        return self.cut(state, None)

    def cut(self, state: ir.Value, grid: tuple[int, ...] | None) -> ir.Value:
        """Cut the features of a state up, (a, b, rows) or (rows, a, b) by layout, or put them together (None)."""
        now = self.grids.get(state)
        if now == grid:
            return state
        sizes = grid or (math.prod(now or ()),)
        result = self.op.Reshape(state, self.emit.integers(*((*sizes, -1) if self.feature_major else (-1, *sizes))))
        if grid:
            self.grids[result] = grid
        return result

    def resized(self, state: ir.Value, width: int, new: int) -> ir.Value:
        """Repeat or fold the features; a repetition is only noted, for the group that comes next."""
        if new < width:
            if next(self.tables) is not None:
                state = self.gathered(state, self.slots.where(self.emit.positions(width)))
            if not self.is_folded:
                state = self.chains.folded(self.cut(state, None), width, new, self.layout)
            self.is_folded = False
        self.slots.resize(width, new)
        return state

    def group(self, i: int, boundary: int, state: ir.Value | None) -> ir.Value:
        """Run one group of chain i with the scales beside it."""
        chain = self.structure.chains[i]
        group = chain.groups[boundary]
        blocks, b = len(group.members(chain.width)), group.block
        is_moved = next(self.tables) is not None
        operand = self.emit.constant(operand_name(i, boundary))
        if state is None:
            return self.standing(operand, blocks, b)
        if self.feature_major and repeats(self.structure, i, boundary):
            return self.repeating(operand, self.structure.widths[i], blocks, b, state)
        if self.feature_major and folds(self.structure, i, boundary):
            return self.folding(operand, self.structure.widths[i + 2], blocks, b, state)
        return self.multiplied(operand, blocks, b, self.moved(i, boundary, state) if is_moved else state)

    def standing(self, product: ir.Value, blocks: int, b: int) -> ir.Value:
        """Return the block-diagonal matrix of a product (blocks, b, b), as (blocks, b, blocks, b)."""
        op, emit, block = self.op, self.emit, self.emit.positions(blocks)
        is_own = op.Cast(op.Equal(op.Reshape(block, emit.integers(-1, 1)), block), to=emit.precision)
        columns = op.Reshape(is_own, emit.integers(blocks, 1, blocks, 1))
        whole = op.Mul(op.Reshape(product, emit.integers(blocks, b, 1, b)), columns)
        self.grids[whole] = (blocks * b,)  # what comes next gives it its shape: a runtime copies all that it folds
        return whole

    def repeating(self, operand: ir.Value, width: int, blocks: int, b: int, state: ir.Value) -> ir.Value:
        """Multiply one state with the blocks of all its copies: the product's batch dimension repeats it."""
        mixed = self.op.MatMul(operand, self.cut(state, (width // b, b)))
        self.grids[mixed] = (blocks * b // width, width // b, b)
        return mixed

    def folding(self, operand: ir.Value, width: int, blocks: int, b: int, state: ir.Value) -> ir.Value:
        """Multiply blocks that are summed afterwards side by side: (b, folds * b) with (folds * b, rows)."""
        count = blocks * b // width
        shuffled = self.op.Transpose(self.cut(state, (b, count, width // b)), perm=[2, 1, 0, 3])
        self.grids[shuffled] = (width // b, count, b)
        mixed = self.op.MatMul(operand, self.cut(shuffled, (width // b, count * b)))
        self.grids[mixed] = (width // b, b)
        self.is_folded = True
        return mixed

    def moved(self, i: int, boundary: int, state: ir.Value) -> ir.Value:
        """Bring the features into the slots of a group."""
        chain = self.structure.chains[i]
        order, width = chain.groups[boundary].order, chain.width
        if isinstance(order, Shuffle) and boundary and all(is_even(g, width) for g in chain.groups[boundary - 1 :][:2]):
            columns = width // order.rows
            transposed = self.op.Transpose(
                self.cut(state, (order.rows, columns)), perm=[1, 0, 2] if self.feature_major else [0, 2, 1]
            )
            self.grids[transposed] = (columns, order.rows)
            return transposed
        return self.gathered(state, self.slots.sources(i, boundary))

    def gathered(self, state: ir.Value, source: ir.Value) -> ir.Value:
        """Take features by their slots."""
        return self.op.Gather(self.cut(state, None), source, axis=self.axis)

    def multiplied(self, operand: ir.Value, blocks: int, b: int, state: ir.Value) -> ir.Value:
        """Multiply each block with its slots."""
        op, grid = self.op, self.cut(state, (blocks, b))
        if self.feature_major:
            mixed = op.MatMul(operand, grid)
        else:
            # (rows, blocks, b) as (blocks, rows, b): ONNX Runtime reads it in place, without a copy
            mixed = op.Transpose(op.MatMul(op.Transpose(grid, perm=[1, 0, 2]), operand), perm=[1, 0, 2])
        self.grids[mixed] = (blocks, b)
        return mixed
