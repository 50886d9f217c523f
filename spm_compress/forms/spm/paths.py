"""The matrix of two consecutive groups of stages, computed only where it is not zero.

Each group is block-diagonal, and the order between them sends every output slot of the first group to one input slot
of the second. A tile is the part of the matrix from one block of input features to one block of outputs. Its value is
a sum over the slots that connect these two blocks, each a column of the second group's block times a row of the first
one's; there are about b * b / n such slots, which is the rank of the tile. Computed tile by tile the matrix takes
b * b * n multiply-adds, as a product on the dense state n * n * b. Where no slot connects two blocks, as for most
pairs once b * b is below n, the tile is zero and is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Paths"]


@dataclass(frozen=True)
class Paths:
    """Which tiles two groups reach, and through which slots.

    tiles: (t,) int64, block of outputs times `columns` plus block of inputs; left, right: (t * rank,) int64, the slots
    of the second and of the first group that each tile sums over, with `valid` (t, rank, 1) where there are fewer;
    their `_back` undoes them. out, into: widths in slots and features; b_out, b_in: rows and columns of a tile.
    """

    tiles: Tensor
    left: Tensor
    left_back: Tensor
    right: Tensor
    right_back: Tensor
    valid: Tensor
    out: int
    into: int
    b_out: int
    b_in: int

    @property
    def columns(self) -> int:
        """Tiles in a row of the matrix."""
        return self.into // self.b_in

    @classmethod
    def between(cls, source: Tensor, links: Tensor, into: int, b_in: int, b_out: int) -> Paths | None:
        """Find the paths of two groups with full blocks of b_in and b_out; None where the inputs of a block are no run.

        source: (slots,) the feature at each input of the first group; links: (slots,) its slot that each input
        of the second one takes.
        """
        slots = len(links)
        starts = source[::b_in]
        runs = torch.equal(source.reshape(-1, b_in), starts[:, None] + torch.arange(b_in))
        if len(source) != slots or slots % b_out or into % b_in or not runs or bool((starts % b_in).any()):
            return None
        columns = into // b_in
        tile = torch.arange(slots) // b_out * columns + source[links] // b_in  # of each slot of the second group
        order = torch.argsort(tile, stable=True)
        tiles, which, counts = torch.unique(tile[order], return_inverse=True, return_counts=True)
        rank = int(counts.max())
        place = which * rank + torch.arange(slots) - (counts.cumsum(0) - counts)[which]  # among t * rank
        left = torch.zeros(len(tiles) * rank, dtype=torch.int64)
        valid = torch.zeros(len(tiles) * rank)
        left[place], valid[place] = order, 1.0
        right = links[left]
        left_back, right_back = torch.empty_like(order), torch.empty_like(order)
        left_back[order], right_back[links[order]] = place, place
        return cls(tiles, left, left_back, right, right_back, valid.reshape(-1, rank, 1), slots, into, b_out, b_in)

    def to(self, device: torch.device) -> Paths:
        """Return the paths with their tables on a device."""
        names = ("tiles", "left", "left_back", "right", "right_back", "valid")
        return self if self.tiles.device == device else replace(self, **{n: getattr(self, n).to(device) for n in names})

    def product(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the tiles (..., t, b_out, b_in) from the blocks of both groups, each (..., blocks, b, b)."""
        left, right = self.factors(first, second)
        return left.mT @ right

    def factors(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors whose left.mT @ right is each tile: (..., t, rank, b_out), (..., t, rank, b_in)."""
        rank = self.valid.shape[1]
        left = second.mT.flatten(-3, -2).index_select(-2, self.left)
        right = first.flatten(-3, -2).index_select(-2, self.right)
        left = left.reshape(*left.shape[:-2], -1, rank, self.b_out)
        right = right.reshape(*right.shape[:-2], -1, rank, self.b_in)
        return (left * self.valid.to(left.dtype) if rank > 1 else left), right

    def dense(self, tiles: Tensor) -> Tensor:
        """Return the matrix (..., out, into) with the tiles (..., t, b_out, b_in) in their places, zero elsewhere."""
        rows = self.out // self.b_out
        if len(self.tiles) < rows * self.columns:
            whole = tiles.new_zeros(*tiles.shape[:-3], rows * self.columns, self.b_out, self.b_in)
            tiles = whole.index_copy(-3, self.tiles, tiles)
        tiles = tiles.reshape(*tiles.shape[:-3], rows, self.columns, self.b_out, self.b_in).transpose(-3, -2)
        return tiles.reshape(*tiles.shape[:-4], self.out, self.into)

    def take(self, matrix: Tensor) -> Tensor:
        """Return the entries of matrix (..., out, into) under the tiles, as (..., t, b_out, b_in)."""
        grid = matrix.reshape(*matrix.shape[:-2], -1, self.b_out, self.columns, self.b_in).transpose(-3, -2)
        if len(self.tiles) == grid.shape[-4] * self.columns:
            return grid.flatten(-4, -3)
        row, column = self.tiles // self.columns, self.tiles % self.columns
        return grid[..., row, column, :, :]
