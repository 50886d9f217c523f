"""What the groups of stages are multiplied out to: a constant sub-graph, folded once when a runtime loads the model.

The file holds the mixers' numbers. The stages of each group run on the identity of a block, which gives its blocks; of
all maps at once, as every array has them on its first axis: a hundred small nodes a layer take longer than their work.
Above a hundred kilobytes a value it is the bytes that take the time, each copied about three times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from spm_compress.forms.lowering import Layout
from spm_compress.forms.spm.lowering.chain_emitter import ChainEmitter
from spm_compress.forms.spm.lowering.slots import Slots, is_even, is_full
from spm_compress.forms.spm.pairing import IDENTITY, Group, Shuffle
from spm_compress.forms.spm.structure import Mixer

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["Operands", "folds", "operand_name", "repeats"]

# Keeps a row of zeros from being divided by zero.
_LEAST_NORM = 1e-30


def operand_name(i: int, boundary: int) -> str:
    """Return the name of what group `boundary` of chain i is multiplied with."""
    return f"{i}.blocks.{boundary}"


def repeats(structure: SPM, i: int, boundary: int) -> bool:
    """Say whether a group is the first after a widening that repeats whole blocks."""
    before, chain = structure.widths[i], structure.chains[i]
    group = chain.groups[boundary]
    previous = structure.chains[i - 1].groups[-1] if i else None
    return (
        boundary == 0
        and chain.width > before
        and chain.width % before == before % group.block == 0
        and group.order == IDENTITY
        and is_even(group, chain.width)
        and (previous is None or is_even(previous, before))
    )


def folds(structure: SPM, i: int, boundary: int) -> bool:
    """Say whether a group is the last before a narrowing that sums whole blocks, and shuffles before."""
    after, chain = structure.widths[i + 2], structure.chains[i]
    group = chain.groups[boundary]
    return (
        0 < boundary == len(chain.groups) - 1
        and chain.width > after
        and chain.width % after == after % group.block == 0
        and group.order == Shuffle(group.block)
        and is_even(group, chain.width)
        and is_even(chain.groups[boundary - 1], chain.width)
    )


class Operands:
    """Emits the operands of all groups; the first axis of every value is that of the maps."""

    def __init__(self, chains: ChainEmitter, layout: Layout) -> None:
        self.chains = chains
        self.emit = chains.emit
        self.structure = chains.structure
        self.op = chains.op
        self.feature_major = layout is Layout.FEATURE_MAJOR
        self.slots = Slots(chains)
        # 16-bit activations: what each slot has been divided by, to keep them in range.
        self.carried: ir.Value | None = None

    def all(self) -> dict[str, ir.Value]:
        """Return the operands by `operand_name`."""
        found = {}
        width = self.structure.in_features
        for i, chain in enumerate(self.structure.chains):
            self.slots.resize(width, chain.width)
            width = chain.width
            stage = 0
            for boundary, group in enumerate(chain.groups):
                product = self.emit.narrowed(self.scaled(i, boundary, stage))
                found[operand_name(i, boundary)] = self.arranged(i, boundary, product)
                self.slots.leave(group)
                stage += group.stages
        return found

    def arranged(self, i: int, boundary: int, product: ir.Value) -> ir.Value:
        """Return blocks (maps * blocks, b, b) as they are multiplied with the state, those of all maps in a row."""
        op, emit = self.op, self.emit
        chain = self.structure.chains[i]
        blocks, b = len(chain.groups[boundary].members(chain.width)), chain.groups[boundary].block
        if not self.feature_major:
            return op.Transpose(product, perm=[0, 2, 1])
        if repeats(self.structure, i, boundary):
            width = self.structure.widths[i]
            return op.Reshape(product, emit.integers(-1, width // b, b, b))
        if folds(self.structure, i, boundary):
            width = self.structure.widths[i + 2]
            count = blocks * b // width
            beside = op.Transpose(op.Reshape(product, emit.integers(-1, count, width // b, b, b)), perm=[0, 2, 3, 1, 4])
            return op.Reshape(beside, emit.integers(-1, b, count * b))
        return product

    def scaled(self, i: int, boundary: int, stage: int) -> ir.Value:
        """Return the blocks of a group, its first stage `stage`, with the scales beside it: (maps * blocks, b, b)."""
        op, emit = self.op, self.emit
        chain = self.structure.chains[i]
        b = chain.groups[boundary].block
        product = self.product(i, boundary, stage)
        before, after = self.chains.scale(i, boundary), self.chains.scale(i, boundary + 1)
        if before is not None:
            columns = op.Gather(before, self.slots.features(i, boundary), axis=-1)
            product = op.Mul(product, op.Reshape(columns, emit.integers(-1, 1, b)))
        if after is not None and boundary + 1 == len(chain.groups):
            rows = op.Gather(after, self.slots.members(chain.width, chain.groups[boundary]), axis=-1)
            product = op.Mul(product, op.Reshape(rows, emit.integers(-1, b, 1)))
        return self.in_range(i, boundary, product) if emit.is_narrow else product

    def product(self, i: int, boundary: int, stage: int) -> ir.Value:
        """Run the stages of a group, the first being `stage`, on the identity of every block: (maps * blocks, b, b)."""
        op, emit, chain = self.op, self.emit, self.structure.chains[i]
        group = chain.groups[boundary]
        if not group.stages:
            return op.Reshape(emit.filled(1.0, chain.width), emit.integers(-1, 1, 1))
        if self.are_alike(i):
            products = emit.once(("products", emit.prefix, i), lambda: self.products(i))
            return op.Gather(products, emit.integer(boundary), axis=0)
        rows = [self.chains.coefficients(i, stage + k) for k in range(group.stages)]
        fillers = (0.0, 1.0)  # where a slot stands for nothing
        filled = [
            [self.in_slots(row, chain.width, group, filler) for row, filler in zip(each, fillers, strict=False)]
            for each in rows
        ]
        return self.multiplied_out(group, filled)

    def are_alike(self, i: int) -> bool:
        """Say whether the groups of chain i are multiplied out together: they differ in their orders only."""
        chain = self.structure.chains[i]
        first = chain.groups[0]
        alike = all(replace(group, order=first.order) == first for group in chain.groups)
        return alike and self.structure.mixer is Mixer.GENERAL and is_even(first, chain.width)

    def products(self, i: int) -> ir.Value:
        """Return the blocks of all groups of chain i: (groups, maps * blocks, b, b)."""
        op, emit, chain = self.op, self.emit, self.structure.chains[i]
        groups, stages, b = len(chain.groups), chain.groups[0].stages, chain.groups[0].block
        shape = emit.integers(-1, groups, stages, chain.width)
        arrays = [op.Transpose(op.Reshape(x, shape), perm=[2, 1, 0, 3]) for x in self.chains.of_all_stages(i)]
        rows = [[op.Gather(array, emit.integer(k), axis=0) for array in arrays] for k in range(stages)]
        return op.Reshape(self.multiplied_out(chain.groups[0], rows), emit.integers(groups, -1, b, b))

    def multiplied_out(self, group: Group, rows: Sequence[Sequence[ir.Value]]) -> ir.Value:
        """Run stages on the identity of every block of groups that are alike: (blocks, b, b).

        rows: the coefficients of every stage, slot by slot, of one group after the other. Of the identity only what can
        be other than zero is held: a column of ones, of which every stage makes two, that of either slot of a pair.
        Columns come first, so that a runtime multiplies long runs of numbers.
        """
        op, emit = self.op, self.emit
        # A column is a slot of its block. Its digits come from the stages, the last one's first where strides rise.
        new = 1 if group.descending else 0
        own, other = self.columns(new, own=True), self.columns(new, own=False)
        state = op.ConstantOfShape(emit.integers(1, 1, 1, 2, 1), value=ir.tensor([1.0], dtype=emit.precision))
        for done, (stride, coefficients) in enumerate(zip(group.strides, rows, strict=True)):
            t = stride // group.low  # between the slots of a pair
            off_diagonal, *diagonal = (op.Reshape(row, emit.integers(1, 1, -1, 2, t)) for row in coefficients)
            reached = [op.Mul(off_diagonal, other), *(op.Mul(each, own) for each in diagonal)]
            if done + 1 < group.stages:
                columns = (1 << done, 1) if new else (1, 1 << done)
                pairs = op.Reshape(state, emit.integers(*columns, -1, 2, t)) if done else state
                state = self.chains.mixed(pairs, emit.integers(1, 0), reached if diagonal else [*reached, own])
            else:  # half of all bytes: without the zeros of a sum
                pairs = op.Reshape(state, emit.integers(1 << done, -1, 2, 1, t))
                turned = op.Transpose(pairs, perm=[0, 2, 1, 3, 4] if new else [2, 0, 1, 3, 4])
                state = op.Mul(turned, op.Add(reached[0], *(reached[1:] or [own])))
        by_column = op.Reshape(state, emit.integers(group.block, -1, group.block))
        return op.Transpose(by_column, perm=[1, 2, 0])

    def columns(self, axis: int, *, own: bool) -> ir.Value:
        """Return which of the two columns of a pair, along an axis, reaches which slot: its own one, or the other."""
        shape = [1, 1, 1, 2, 1]
        shape[axis] = 2
        reached = np.eye(2)[:: 1 if own else -1].reshape(shape).tolist()
        return self.emit.once(
            ("columns", axis, own), lambda: self.op.Constant(value=ir.tensor(reached, dtype=self.emit.precision))
        )

    def in_slots(self, row: ir.Value, width: int, group: Group, filler: float) -> ir.Value:
        """Return the entries of rows (maps, width) slot by slot, the filler where a slot stands for nothing."""
        op, emit = self.op, self.emit
        if group.low == 1 and is_full(group, width):
            return row
        values = op.Gather(row, self.slots.members(width, group), axis=-1)
        if is_full(group, width):
            return values
        is_there = op.Less(self.slots.unclipped(width, group), emit.integer(width))
        return op.Where(is_there, values, emit.number(filler))

    def in_range(self, i: int, boundary: int, product: ir.Value) -> ir.Value:
        """Give the rows of a product norm one and hand their norms to the next group's columns."""
        op, emit = self.op, self.emit
        members = self.structure.chains[i].groups[boundary].members(self.structure.chains[i].width)
        if self.carried is not None:
            carried = op.Gather(self.carried, self.slots.sources(i, boundary), axis=-1)
            product = op.Mul(product, op.Reshape(carried, emit.integers(-1, 1, members.shape[-1])))
        widths = self.structure.widths
        is_last = boundary + 1 == len(self.structure.chains[i].groups)
        if is_last and (i + 1 == len(self.structure.chains) or widths[i + 2] < widths[i + 1]):
            self.carried = None
            return product
        norms = op.Sqrt(emit.summed(op.Mul(product, product), 2, keepdims=1))
        norms = op.Max(norms, emit.number(_LEAST_NORM))
        self.carried = op.Reshape(norms, emit.integers(-1, members.numel()))
        return op.Div(product, norms)
