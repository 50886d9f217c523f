"""Where the features stand between groups that run block by block, as formulas."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from spm_compress.forms.spm.lowering.chain_emitter import ChainEmitter
from spm_compress.forms.spm.pairing import Group

__all__ = ["Slots", "is_even", "is_full"]

Positions = Callable[[ir.Value], ir.Value]


class Slots:
    """Between groups the state has one entry a *slot*: the positions of a group's blocks, block by block.

    `where` maps positions of the current width to the slots that hold them.
    """

    def __init__(self, chains: ChainEmitter) -> None:
        self.chains = chains
        self.emit = chains.emit
        self.op = chains.op
        self.where: Positions = lambda position: position

    def resize(self, width: int, new: int) -> None:
        """Go on at another width: features are repeated where they stand, or were put together in their order."""
        before = self.where
        if new > width:
            self.where = lambda position: before(self.op.Mod(position, self.emit.integer(width)))
        if new < width:
            self.where = lambda position: position

    def features(self, i: int, boundary: int) -> ir.Value:
        """Return, slot by slot of a group, the position before the group's order."""
        chain = self.chains.structure.chains[i]
        return self.chains.ordered(i, boundary, self.members(chain.width, chain.groups[boundary]))

    def sources(self, i: int, boundary: int) -> ir.Value:
        """Return, slot by slot of a group, the slot that holds its feature before."""
        return self.where(self.features(i, boundary))

    def members(self, width: int, group: Group) -> ir.Value:
        """Return the position that stands in each slot; a slot of none has the last position."""
        position = self.unclipped(width, group)
        return position if is_full(group, width) else self.emit.at_most(position, width - 1)

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

    def leave(self, group: Group) -> None:
        """Go on behind a group, in its slots."""
        if group.low == 1:
            self.where = lambda position: position
            return
        op, emit = self.op, self.emit
        low, block, span = emit.integer(group.low), emit.integer(group.block), emit.integer(group.low * group.block)

        def slot(position: ir.Value) -> ir.Value:
            inside = op.Mod(position, span)
            offset = op.Add(op.Mul(op.Mod(inside, low), block), op.Div(inside, low))
            return op.Add(op.Mul(op.Div(position, span), span), offset)

        self.where = slot


def is_full(group: Group, width: int) -> bool:
    """Say whether every slot stands for a position."""
    return width % (group.low * group.block) == 0


def is_even(group: Group, width: int) -> bool:
    """Say whether slots are positions, and there are no others."""
    return group.low == 1 and is_full(group, width)
