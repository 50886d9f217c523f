"""What a descent multiplies out at every step, with the gradient written out, in buffers that are made once.

A group, as `operator.block_products.group_blocks`: a stage makes Q = d P + c P' of the product P so far, P' being P
with the halves of every pair of runs exchanged, and with G the gradient with respect to Q

    dL/dd = <G, P>, dL/dc = <G, P'>, dL/dP = d G + (c G)'        (inner products along the rows)

Two groups in a row, as `operator.paths.Paths.product`: each tile is a left times a right factor. No step allocates,
copies an exchanged half or records a graph of its stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from spm_compress.forms.spm.block_products import chain_blocks
from spm_compress.forms.spm.pairing import Group
from spm_compress.forms.spm.paths import Paths
from spm_compress.forms.spm.structure import Chain

__all__ = ["Workspace"]


class Workspace:
    """Multiplies out chains; each result is valid until the next call of the same shape, and once differentiable."""

    def __init__(self) -> None:
        self._groups: dict[tuple[Chain, torch.Size], _Groups] = {}
        self._tiles: Tensor | None = None

    def blocks(self, chain: Chain, diagonal: Tensor, off_diagonal: Tensor) -> Sequence[Tensor]:
        """Return each group's blocks (..., blocks, b, b); diagonal, off_diagonal: (..., stages, width).

        Unlike groups and incomplete blocks go through `chain_blocks`.
        """
        group = chain.groups[0]
        b = group.block
        plain = Group(group.order, group.stages)
        if chain.width % b or any(replace(other, order=group.order) != plain for other in chain.groups):
            return chain_blocks(chain, diagonal, off_diagonal)
        shape = *diagonal.shape[:-2], len(chain.groups), group.stages, chain.width // b, b
        key = chain, diagonal.shape
        if key not in self._groups:
            self._groups[key] = _Groups(diagonal.new_empty(shape))
        multiplied: Tensor = _Multiplied.apply(  # type: ignore[no-untyped-call]
            diagonal.reshape(shape), off_diagonal.reshape(shape), self._groups[key]
        )
        return multiplied.unbind(-4)

    def tiles(self, paths: Paths, first: Tensor, second: Tensor) -> Tensor:
        """Return the tiles of two groups, each (..., blocks, b, b), below each other: (..., t * b_out, b_in)."""
        shape = *first.shape[:-3], len(paths.tiles) * paths.b_out, paths.b_in
        if self._tiles is None or self._tiles.shape != shape:
            self._tiles = first.new_empty(shape)
        tiles: Tensor = _Tiles.apply(first, second, paths, self._tiles)  # type: ignore[no-untyped-call]
        return tiles


class _Halved:
    """A tensor (..., b, columns), and for each stage the views of the lower and the upper halves of its pairs."""

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        b = whole.shape[-2]
        shape, columns = whole.shape[:-2], whole.shape[-1]
        strides = [1 << k for k in range(b.bit_length() - 1)]
        self.halves = [whole.view(*shape, b // (2 * t), 2, t, columns).unbind(-3) for t in strides]


class _Groups:
    """Buffers for coefficients (..., groups, stages, blocks, b), the product before each stage, and gradients."""

    def __init__(self, like: Tensor) -> None:
        stages, blocks, b = like.shape[-3:]
        square = *like.shape[:-3], blocks, b, b
        eye = torch.eye(b, dtype=like.dtype, device=like.device)
        self.diagonal, self.off_diagonal = torch.empty_like(like), torch.empty_like(like)
        self.diagonal_of = self.diagonal.unsqueeze(-1).unbind(-4)
        self.off_diagonal_of = [_Halved(each) for each in self.off_diagonal.unsqueeze(-1).unbind(-4)]
        self.products = [_Halved(eye.expand(square).contiguous())]
        self.products += [_Halved(like.new_empty(square)) for _ in range(stages)]
        self.gradients = [_Halved(like.new_empty(square)) for _ in range(2)]
        both = like.new_empty(2, *square)
        self.both, self.for_diagonal, self.for_off_diagonal = both, both[0], _Halved(both[1])
        self.sums = like.new_empty(stages, *both.shape[:-1])


class _Multiplied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, diagonal: Tensor, off_diagonal: Tensor, groups: _Groups) -> Tensor:
        ctx.groups = groups  # type: ignore[attr-defined]
        groups.diagonal.copy_(diagonal)
        groups.off_diagonal.copy_(off_diagonal)
        for k, (d, c) in enumerate(zip(groups.diagonal_of, groups.off_diagonal_of, strict=True)):
            before, after = groups.products[k], groups.products[k + 1]
            torch.mul(before.whole, d, out=after.whole)
            after.halves[k][0].addcmul_(c.halves[k][0], before.halves[k][1])
            after.halves[k][1].addcmul_(c.halves[k][1], before.halves[k][0])
        return groups.products[-1].whole.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        groups: _Groups = ctx.groups  # type: ignore[attr-defined]
        now, next_ = groups.gradients
        now.whole.copy_(gradient)
        for k in reversed(range(len(groups.diagonal_of))):
            before, c = groups.products[k], groups.off_diagonal_of[k]
            torch.mul(now.whole, before.whole, out=groups.for_diagonal)
            torch.mul(now.halves[k][0], before.halves[k][1], out=groups.for_off_diagonal.halves[k][0])
            torch.mul(now.halves[k][1], before.halves[k][0], out=groups.for_off_diagonal.halves[k][1])
            torch.sum(groups.both, -1, out=groups.sums[k])
            if k:
                torch.mul(now.whole, groups.diagonal_of[k], out=next_.whole)
                next_.halves[k][0].addcmul_(c.halves[k][1], now.halves[k][1])
                next_.halves[k][1].addcmul_(c.halves[k][0], now.halves[k][0])
                now, next_ = next_, now
        diagonal, off_diagonal = groups.sums.movedim(0, -3).unbind(0)  # (2, ..., groups, stages, blocks, b)
        return diagonal, off_diagonal, None


class _Tiles(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, first: Tensor, second: Tensor, paths: Paths, tiles: Tensor) -> Tensor:
        left, right = paths.factors(first, second)
        ctx.paths, ctx.shapes = paths, (first.shape, second.shape)  # type: ignore[attr-defined]
        ctx.save_for_backward(left, right)
        torch.matmul(left.mT, right, out=tiles.view(*left.shape[:-2], paths.b_out, paths.b_in))
        return tiles.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right = ctx.saved_tensors  # type: ignore[attr-defined]
        paths: Paths = ctx.paths  # type: ignore[attr-defined]
        first, second = ctx.shapes  # type: ignore[attr-defined]
        gradient = gradient.view(*left.shape[:-2], paths.b_out, paths.b_in)
        # Every slot is in one tile: what its row got is picked, not added up.
        of_second = (right @ gradient.mT).flatten(-3, -2).index_select(-2, paths.left_back)
        of_first = (left @ gradient).flatten(-3, -2).index_select(-2, paths.right_back)
        return of_first.reshape(first), of_second.reshape(second).mT, None, None
