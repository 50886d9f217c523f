"""Mixers as coefficients, and groups of stages multiplied out to blocks.

All functions take any leading dimensions `...`, so that several maps of one structure are
handled as one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from spm_compress.forms.spm.pairing import Group, pair_count, partner
from spm_compress.forms.spm.structure import Chain

__all__ = ["Products", "chain_blocks", "coefficients", "group_blocks"]

Products = Callable[[Chain, Tensor, Tensor], Sequence[Tensor]]


def coefficients(chain: Chain, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the coefficients, each (..., stages, width), of y = diagonal * x + off_diagonal * x[partner].

    numbers: as `Chain.shapes`, of any mixer and gauge. The off-diagonal coefficient of an unpaired position is zero,
    whatever number is stored for it.
    """
    if "angles" in numbers:
        return _rotation_coefficients(chain, numbers["angles"])
    if "directions" in numbers:
        diagonal, off_diagonal = numbers["directions"].cos(), numbers["directions"].sin()
        paired = _paired(chain).to(diagonal.device)
        return torch.where(paired, diagonal, 1), torch.where(paired, off_diagonal, 0)
    off_diagonal = numbers["off_diagonal"]
    diagonal = numbers["diagonal"] if "diagonal" in numbers else torch.ones_like(off_diagonal)
    if all(chain.width % (2 * stride) == 0 for stride in chain.strides):
        return diagonal, off_diagonal  # no position is without a partner
    return diagonal, off_diagonal * _paired(chain).to(off_diagonal)


def _paired(chain: Chain) -> Tensor:
    """Return (stages, width) bool: which positions have a partner."""
    position = torch.arange(chain.width)
    mask = torch.empty(chain.stages, chain.width, dtype=torch.bool)
    for stage, stride in enumerate(chain.strides):
        mask[stage] = partner(chain.width, stride) != position
    return mask


def _rotation_coefficients(chain: Chain, angles: Tensor) -> tuple[Tensor, Tensor]:
    signed = angles.new_zeros(*angles.shape[:-1], chain.stages, chain.width)
    start = 0
    position = torch.arange(chain.width)
    for stage, stride in enumerate(chain.strides):
        other = partner(chain.width, stride)
        count = pair_count(chain.width, stride)
        lower = position[position < other].to(angles.device)
        each = angles[..., start : start + count]
        start += count
        # the lower member u gets -sin v, the upper member v gets +sin u
        signed[..., stage, lower] = -each
        signed[..., stage, lower + stride] = each
    return signed.cos(), signed.sin()


def chain_blocks(chain: Chain, diagonal: Tensor, off_diagonal: Tensor) -> Sequence[Tensor]:
    """Return the blocks of each group of a chain, as `group_blocks`; diagonal, off_diagonal: (..., stages, width).

    Groups that differ in their order only are multiplied out together.
    """
    group = chain.groups[0]
    if all(replace(other, order=group.order) == group for other in chain.groups):
        together = *diagonal.shape[:-2], len(chain.groups), group.stages, chain.width
        return group_blocks(group, chain.width, diagonal.reshape(together), off_diagonal.reshape(together)).unbind(-4)
    spans = [group.stages for group in chain.groups]
    parts = zip(chain.groups, torch.split(diagonal, spans, -2), torch.split(off_diagonal, spans, -2), strict=True)
    return [group_blocks(group, chain.width, *part) for group, *part in parts]


def group_blocks(group: Group, width: int, diagonal: Tensor, off_diagonal: Tensor) -> Tensor:
    """Multiply the stages of one group out.

    diagonal, off_diagonal: (..., stages of the group, width). Returns (..., blocks, block, block): block k
    maps the positions members[k] to themselves; rows and columns that stand for no position are
    those of the identity.
    """
    if group.descending and group.stages:  # the transposed stages, taken in the other order, rise
        order = [partner(width, stride) for stride in group.strides]
        swapped = torch.stack([off_diagonal[..., k, order[k]] for k in range(group.stages)], -2)
        rising = replace(group, descending=False)
        return group_blocks(rising, width, diagonal.flip(-2), swapped.flip(-2)).mT
    b = group.block
    if group.low == 1 and width % b == 0:
        in_blocks = *diagonal.shape[:-1], width // b, b  # (..., stages, blocks, b)
        diagonal, off_diagonal = diagonal.reshape(in_blocks), off_diagonal.reshape(in_blocks)
    else:
        members = group.members(width).to(diagonal.device)  # (blocks, b)
        valid, clipped = members < width, members.clamp(max=width - 1)
        diagonal = torch.where(valid, diagonal[..., clipped], 1)
        off_diagonal = torch.where(valid, off_diagonal[..., clipped], 0)
    # A stage joins two blocks, the lower and the upper half of one twice as large: each of its entries is one of theirs
    # times one coefficient, diagonal within a half and off-diagonal between them. All coefficients are laid out at
    # once: one stage after the other takes longer.
    bits = torch.arange(group.stages, device=diagonal.device)[:, None, None]
    upper = (torch.arange(b, device=diagonal.device) >> bits & 1).bool()
    of_halves = torch.where(upper, off_diagonal, diagonal), torch.where(upper, diagonal, off_diagonal)
    product = diagonal.new_ones(*diagonal.shape[:-3], diagonal.shape[-2] * b, 1, 1)  # (..., blocks b / t, t, t)
    for stage, factor in enumerate(torch.stack(of_halves, -1).unbind(-4)):  # (..., blocks, b, column half)
        t = 1 << stage
        joins = *product.shape[:-3], product.shape[-3] // 2
        below = product.reshape(*joins, 1, 2, t, t).transpose(-3, -2)  # (..., 1, row, column half, column)
        product = (factor.reshape(*joins, 2, t, 2, 1) * below).reshape(*joins, 2 * t, 2 * t)
    return product
