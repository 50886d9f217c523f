"""Mixers as coefficients, and groups of stages multiplied out to blocks.

All functions take any leading dimensions `...`, so that several maps of one structure are
handled as one batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spm_compress.operator.pairing import Group, pair_count, partner
from spm_compress.operator.structure import Chain, Mixer

__all__ = ["coefficients", "group_blocks"]


def coefficients(chain: Chain, mixer: Mixer, numbers: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return direct and cross, each (..., stages, width), of y = direct * x + cross * x[partner].

    The cross coefficient of an unpaired position is zero, whatever number is stored for it.
    """
    match mixer:
        case Mixer.ROTATION:
            return _rotation_coefficients(chain, numbers["angles"])
        case Mixer.GENERAL:
            direct, cross = numbers["direct"], numbers["cross"]
        case Mixer.CANONICAL:
            cross = numbers["cross"]
            direct = torch.ones_like(cross)
    return direct, cross * paired(chain).to(cross)


def paired(chain: Chain) -> Tensor:
    """Return (stages, width) bool: which positions have a partner."""
    position = torch.arange(chain.width)
    mask = torch.empty(chain.stages, chain.width, dtype=torch.bool)
    for stage, stride in enumerate(chain.strides):
        mask[stage] = partner(chain.width, stride) != position
    return mask


def _rotation_coefficients(chain: Chain, angles: Tensor) -> tuple[Tensor, Tensor]:
    turn = angles.new_zeros(*angles.shape[:-1], chain.stages, chain.width)
    start = 0
    position = torch.arange(chain.width)
    for stage, stride in enumerate(chain.strides):
        other = partner(chain.width, stride)
        count = pair_count(chain.width, stride)
        lower = position[position < other].to(angles.device)
        each = angles[..., start : start + count]
        start += count
        # the lower member u gets -sin v, the upper member v gets +sin u
        turn[..., stage, lower] = -each
        turn[..., stage, lower + stride] = each
    return turn.cos(), turn.sin()


def group_blocks(group: Group, width: int, direct: Tensor, cross: Tensor) -> Tensor:
    """Multiply the stages of one group out.

    direct, cross: (..., stages of the group, width). Returns (..., blocks, block, block): block k
    maps the positions members[k] to themselves; rows and columns that stand for no position are
    those of the identity.
    """
    if group.descending and group.stages:  # the transposed stages, taken in the other order, rise
        order = [partner(width, stride) for stride in group.strides]
        swapped = torch.stack([cross[..., k, order[k]] for k in range(group.stages)], -2)
        rising = replace(group, descending=False)
        return group_blocks(rising, width, direct.flip(-2), swapped.flip(-2)).mT
    members = group.members(width).to(direct.device)  # (blocks, block)
    valid = members < width
    clipped = members.clamp(max=width - 1)
    direct = torch.where(valid, direct[..., clipped], 1)  # (..., stages, blocks, block)
    cross = torch.where(valid, cross[..., clipped], 0)
    blocks = len(members)
    lead = direct.shape[:-3]
    # From 1x1 blocks, each stage joins two neighbours of size t: [[d A, c B], [c' A, d' B]].
    product = direct.new_ones(*lead, blocks * group.block, 1, 1)
    for stage in range(group.stages):
        t = 1 << stage
        joins = blocks * group.block // (2 * t)
        d = direct[..., stage, :, :].reshape(*lead, joins, 2, t)
        c = cross[..., stage, :, :].reshape(*lead, joins, 2, t)
        # factor[row half, row, column half]
        factor = torch.stack(
            (
                torch.stack((d[..., 0, :], c[..., 0, :]), -1),
                torch.stack((c[..., 1, :], d[..., 1, :]), -1),
            ),
            -3,
        )
        below = product.reshape(*lead, joins, 1, 2, t, t).transpose(-3, -2)  # (..., 1, row, half, column)
        product = (factor.unsqueeze(-1) * below).reshape(*lead, joins, 2 * t, 2 * t)
    return product.reshape(*lead, blocks, group.block, group.block)
