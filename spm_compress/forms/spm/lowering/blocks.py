"""Groups of stages as batched products with their blocks.

The file holds the mixers' numbers. A constant sub-graph runs the stages of each group on the identity of a block, which
gives its blocks; a runtime that folds constants does so once, when it loads the model, and runs one MatMul a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from spm_compress.forms.lowering import Layout
from spm_compress.forms.spm.lowering.chain_emitter import ChainEmitter
from spm_compress.forms.spm.pairing import IDENTITY, Group, Shuffle
from spm_compress.forms.spm.plan import FusedPlan
from spm_compress.forms.spm.structure import Mixer

__all__ = ["BlocksBody"]

# Keeps a row of zeros from being divided by zero.
_LEAST_NORM = 1e-30
Positions = Callable[[ir.Value], ir.Value]


class BlocksBody:
    """Emits the groups of one function, as `forms.spm.plan.FusedPlan` runs them.

    Between groups the state has one entry a *slot*: the positions of a group's blocks, block by block.
    `where` maps positions of the current width to the slots that hold them.
    """

    def __init__(self, chains: ChainEmitter, layout: Layout) -> None:
        self.chains = chains
        self.emit = chains.emit
        self.structure = chains.structure
        self.op = chains.op
        self.layout = layout
        self.feature_major = layout is Layout.FEATURE_MAJOR
        self.axis = 0 if self.feature_major else 1
        self.tables = iter(FusedPlan(self.structure).tables)
        self.where: Positions = lambda position: position
        # 16-bit activations: what each slot has been divided by, to keep them in range.
        self.carried: ir.Value | None = None
        # How the features of a state are cut up at the moment; None: not at all.
        self.grids: dict[ir.Value, tuple[int, ...]] = {}
        self.is_folded = False  # the last group has summed what follows it

    def matrix(self) -> ir.Value:
        """Return the matrix (out, in): the map of the identity, or of the first group's blocks if it moves nothing."""
        width, group = self.structure.in_features, self.structure.chains[0].groups[0]
        stands = width == self.structure.chains[0].width and group.order == IDENTITY and _is_even(group, width)
        return self.map(None if stands else self.emit.identity(width))

    def map(self, state: ir.Value | None) -> ir.Value:
        """Return the product of the map with a state of (in, rows), or (rows, in) by layout; None is the identity."""
        structure = self.structure
        width = structure.in_features
        for i, chain in enumerate(structure.chains):
            state = None if state is None else self.resized(state, width, chain.width)
            width = chain.width
            stage = 0
            for boundary, group in enumerate(chain.groups):
                state = self.group(i, boundary, stage, state)
                self.where = self.slots(group)
                stage += group.stages
        assert state is not None
        state = self.resized(state, width, structure.out_features)
        if next(self.tables) is not None:
            return self.gathered(state, self.where(self.emit.positions(structure.out_features)))
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
        before, emit = self.where, self.emit
        if new > width:
            self.where = lambda position: before(self.op.Mod(position, emit.integer(width)))
        if new < width:
            if next(self.tables) is not None:
                state = self.gathered(state, before(emit.positions(width)))
            if not self.is_folded:
                state = self.chains.folded(self.cut(state, None), width, new, self.layout)
            self.is_folded = False
            self.where = lambda position: position
        return state

    def group(self, i: int, boundary: int, stage: int, state: ir.Value | None) -> ir.Value:
        """Run one group of chain i, whose first stage is `stage`, with the scales beside it."""
        op, emit = self.op, self.emit
        chain = self.structure.chains[i]
        group = chain.groups[boundary]
        blocks, b = len(group.members(chain.width)), group.block
        position = self.members(chain.width, group)
        feature = self.chains.ordered(i, boundary, position)
        source = self.where(feature)
        is_moved = next(self.tables) is not None
        product = self.product(i, boundary, stage)  # (blocks, b, b)
        before, after = self.chains.scale(i, boundary), self.chains.scale(i, boundary + 1)
        if before is not None:
            product = op.Mul(product, op.Reshape(op.Gather(before, feature, axis=0), emit.integers(blocks, 1, b)))
        if after is not None and boundary + 1 == len(chain.groups):
            product = op.Mul(product, op.Reshape(op.Gather(after, position, axis=0), emit.integers(blocks, b, 1)))
        if emit.is_narrow:
            product = self.in_range(i, boundary, product, source)
        product = op.Cast(product, to=emit.dtype)
        if state is None:
            return self.standing(product, blocks, b)
        if self.feature_major and self.repeats(i, boundary):
            return self.repeating(product, self.structure.widths[i], blocks, b, state)
        if self.feature_major and self.folds(i, boundary):
            return self.folding(product, self.structure.widths[i + 2], blocks, b, state)
        return self.multiplied(product, blocks, b, self.moved(i, boundary, state, source) if is_moved else state)

    def standing(self, product: ir.Value, blocks: int, b: int) -> ir.Value:
        """Return the block-diagonal matrix of a product (blocks, b, b), as (blocks, b, blocks, b)."""
        op, emit, block = self.op, self.emit, self.emit.positions(blocks)
        is_own = op.Cast(op.Equal(op.Reshape(block, emit.integers(-1, 1)), block), to=emit.precision)
        columns = op.Reshape(is_own, emit.integers(blocks, 1, blocks, 1))
        whole = op.Mul(op.Reshape(product, emit.integers(blocks, b, 1, b)), columns)
        self.grids[whole] = (blocks * b,)  # what comes next gives it its shape: a runtime copies all that it folds
        return whole

    def repeats(self, i: int, boundary: int) -> bool:
        """Say whether a group is the first after a widening that repeats whole blocks."""
        before, chain = self.structure.widths[i], self.structure.chains[i]
        group = chain.groups[boundary]
        previous = self.structure.chains[i - 1].groups[-1] if i else None
        return (
            boundary == 0
            and chain.width > before
            and chain.width % before == before % group.block == 0
            and group.order == IDENTITY
            and _is_even(group, chain.width)
            and (previous is None or _is_even(previous, before))
        )

    def repeating(self, product: ir.Value, width: int, blocks: int, b: int, state: ir.Value) -> ir.Value:
        """Multiply one state with the blocks of all its copies: the product's batch dimension repeats it."""
        product = self.op.Reshape(product, self.emit.integers(blocks * b // width, width // b, b, b))
        mixed = self.op.MatMul(product, self.cut(state, (width // b, b)))
        self.grids[mixed] = (blocks * b // width, width // b, b)
        return mixed

    def folds(self, i: int, boundary: int) -> bool:
        """Say whether a group is the last before a narrowing that sums whole blocks, and shuffles before."""
        after, chain = self.structure.widths[i + 2], self.structure.chains[i]
        group = chain.groups[boundary]
        return (
            0 < boundary == len(chain.groups) - 1
            and chain.width > after
            and chain.width % after == after % group.block == 0
            and group.order == Shuffle(group.block)
            and _is_even(group, chain.width)
            and _is_even(chain.groups[boundary - 1], chain.width)
        )

    def folding(self, product: ir.Value, width: int, blocks: int, b: int, state: ir.Value) -> ir.Value:
        """Multiply blocks that are summed afterwards side by side: (b, folds * b) with (folds * b, rows)."""
        op, emit, folds = self.op, self.emit, blocks * b // width
        beside = op.Transpose(op.Reshape(product, emit.integers(folds, width // b, b, b)), perm=[1, 2, 0, 3])
        beside = op.Reshape(beside, emit.integers(width // b, b, folds * b))
        shuffled = op.Transpose(self.cut(state, (b, folds, width // b)), perm=[2, 1, 0, 3])
        self.grids[shuffled] = (width // b, folds, b)
        mixed = op.MatMul(beside, self.cut(shuffled, (width // b, folds * b)))
        self.grids[mixed] = (width // b, b)
        self.is_folded = True
        return mixed

    def moved(self, i: int, boundary: int, state: ir.Value, source: ir.Value) -> ir.Value:
        """Bring the features into the slots of a group."""
        chain = self.structure.chains[i]
        order, width = chain.groups[boundary].order, chain.width
        if (
            isinstance(order, Shuffle)
            and boundary
            and all(_is_even(g, width) for g in chain.groups[boundary - 1 :][:2])
        ):
            columns = width // order.rows
            transposed = self.op.Transpose(
                self.cut(state, (order.rows, columns)), perm=[1, 0, 2] if self.feature_major else [0, 2, 1]
            )
            self.grids[transposed] = (columns, order.rows)
            return transposed
        return self.gathered(state, source)

    def gathered(self, state: ir.Value, source: ir.Value) -> ir.Value:
        """Take features by their slots."""
        return self.op.Gather(self.cut(state, None), source, axis=self.axis)

    def multiplied(self, product: ir.Value, blocks: int, b: int, state: ir.Value) -> ir.Value:
        """Multiply each block with its slots."""
        op, grid = self.op, self.cut(state, (blocks, b))
        if self.feature_major:
            mixed = op.MatMul(product, grid)
        else:
            # (rows, blocks, b) as (blocks, rows, b): ONNX Runtime reads it in place, without a copy
            mixed = op.MatMul(op.Transpose(grid, perm=[1, 0, 2]), op.Transpose(product, perm=[0, 2, 1]))
            mixed = op.Transpose(mixed, perm=[1, 0, 2])
        self.grids[mixed] = (blocks, b)
        return mixed

    def members(self, width: int, group: Group) -> ir.Value:
        """Return the position that stands in each slot; a slot of none has the last position."""
        position = self.unclipped(width, group)
        return position if _is_full(group, width) else self.emit.at_most(position, width - 1)

    def unclipped(self, width: int, group: Group) -> ir.Value:
        """Return the position of each slot, past the width where it stands for nothing."""
        op, emit = self.op, self.emit
        slot = emit.positions(group.members(width).numel())
        if group.low == 1:
            return slot
        low, block, span = emit.integer(group.low), emit.integer(group.block), emit.integer(group.low * group.block)
        inside = op.Mod(slot, span)
        offset = op.Add(op.Div(inside, block), op.Mul(op.Mod(inside, block), low))
        return op.Add(op.Mul(op.Div(slot, span), span), offset)

    def slots(self, group: Group) -> Positions:
        """Return the inverse of `unclipped`."""
        if group.low == 1:
            return lambda position: position
        op, emit = self.op, self.emit
        low, block, span = emit.integer(group.low), emit.integer(group.block), emit.integer(group.low * group.block)

        def slot(position: ir.Value) -> ir.Value:
            inside = op.Mod(position, span)
            offset = op.Add(op.Mul(op.Mod(inside, low), block), op.Div(inside, low))
            return op.Add(op.Mul(op.Div(position, span), span), offset)

        return slot

    def product(self, i: int, boundary: int, stage: int) -> ir.Value:
        """Run the stages of a group, the first being `stage`, on the identity of every block: (blocks, b, b)."""
        op, emit, chain = self.op, self.emit, self.structure.chains[i]
        group = chain.groups[boundary]
        if self.are_alike(i):
            products = emit.once(("products", emit.prefix, i), lambda: self.products(i))
            return op.Gather(products, emit.integer(boundary), axis=0)
        rows = [self.chains.coefficients(i, stage + k) for k in range(group.stages)]
        fillers = (0.0, 1.0)  # where a slot stands for nothing
        filled = [
            [self.in_slots(row, chain.width, group, filler) for row, filler in zip(each, fillers, strict=False)]
            for each in rows
        ]
        return op.Reshape(self.multiplied_out(i, group, 1, filled), emit.integers(-1, group.block, group.block))

    def are_alike(self, i: int) -> bool:
        """Say whether the groups of chain i are multiplied out together: they differ in their orders only."""
        chain = self.structure.chains[i]
        first = chain.groups[0]
        alike = all(replace(group, order=first.order) == first for group in chain.groups)
        return alike and self.structure.mixer is Mixer.GENERAL and _is_even(first, chain.width)

    def products(self, i: int) -> ir.Value:
        """Return the blocks of all groups of chain i: (groups, blocks, b, b)."""
        op, emit, chain = self.op, self.emit, self.structure.chains[i]
        groups, stages, b = len(chain.groups), chain.groups[0].stages, chain.groups[0].block
        shape = emit.integers(groups, stages, chain.width)
        arrays = [op.Reshape(array, shape) for array in self.chains.of_all_stages(i)]
        rows = [[op.Gather(array, emit.integer(k), axis=1) for array in arrays] for k in range(stages)]
        return op.Reshape(self.multiplied_out(i, chain.groups[0], groups, rows), emit.integers(groups, -1, b, b))

    def multiplied_out(self, i: int, group: Group, groups: int, rows: Sequence[Sequence[ir.Value]]) -> ir.Value:
        """Run stages on the identity of every block of `groups` groups; rows: (groups, slots) of every stage."""
        op, emit = self.op, self.emit
        slots, b = group.members(self.structure.chains[i].width).numel(), group.block
        place = op.Mod(emit.positions(slots), emit.integer(b))
        is_own = op.Equal(op.Reshape(place, emit.integers(-1, 1)), emit.positions(b))
        state = op.Cast(is_own, to=emit.precision)  # (slots, b)
        outer = 1  # the identity is the same for all groups
        for stride, coefficients in zip(group.strides, rows, strict=True):
            t = stride // group.low  # between the slots of a pair
            pairs = slots // (2 * t), 2, t
            shaped = [op.Reshape(row, emit.integers(groups, *pairs, 1)) for row in coefficients]
            state = self.chains.mixed(op.Reshape(state, emit.integers(outer, *pairs, b)), emit.integers(1, 0), shaped)
            outer = groups
        return state

    def in_slots(self, row: ir.Value, width: int, group: Group, filler: float) -> ir.Value:
        """Return the entries of a row (width,) slot by slot, the filler where a slot stands for nothing."""
        op, emit = self.op, self.emit
        if group.low == 1 and _is_full(group, width):
            return row
        values = op.Gather(row, self.members(width, group), axis=0)
        if _is_full(group, width):
            return values
        return op.Where(op.Less(self.unclipped(width, group), emit.integer(width)), values, emit.number(filler))

    def in_range(self, i: int, boundary: int, product: ir.Value, source: ir.Value) -> ir.Value:
        """Give the rows of a product norm one and hand their norms to the next group's columns."""
        op, emit = self.op, self.emit
        blocks = len(self.structure.chains[i].groups[boundary].members(self.structure.chains[i].width))
        if self.carried is not None:
            carried = op.Gather(self.carried, source, axis=0)
            product = op.Mul(product, op.Reshape(carried, emit.integers(blocks, 1, -1)))
        widths = self.structure.widths
        is_last = boundary + 1 == len(self.structure.chains[i].groups)
        if is_last and (i + 1 == len(self.structure.chains) or widths[i + 2] < widths[i + 1]):
            self.carried = None
            return product
        norms = op.Sqrt(emit.summed(op.Mul(product, product), 2, keepdims=1))
        norms = op.Max(norms, emit.number(_LEAST_NORM))
        self.carried = op.Reshape(norms, emit.integers(-1))
        return op.Div(product, norms)


def _is_full(group: Group, width: int) -> bool:
    return width % (group.low * group.block) == 0


def _is_even(group: Group, width: int) -> bool:
    """Say whether slots are positions, and there are no others."""
    return group.low == 1 and _is_full(group, width)
