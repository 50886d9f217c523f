"""Exact conversions: any SPM to canonical form, and to the SPM of the transposed map.

A stage that follows a scaling diag(s) is itself a scaling that follows a canonical stage:

    d_i s_i x_i + c_i s_p x_p = (d_i s_i) * (x_i + (c_i s_p) / (d_i s_i) x_p)

so a running scale can be carried through the whole chain and stands once, at its end. The
numbers of each stage halve (2n to n) and no precision is lost: a diagonal scaling changes the exponents
of intermediate values, not their relative rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from spm_compress.errors import FitError
from spm_compress.operator.block_products import coefficients
from spm_compress.operator.pairing import pair_count, partner
from spm_compress.operator.spm import SPM, resize
from spm_compress.operator.structure import Chain, Mixer

__all__ = ["to_canonical", "to_general", "transpose"]

# A direct entry of zero cannot divide. This much of its cross entry stands in for it: less than the
# rounding of float32 for a pure swap.
_STAND_IN = 2.0**-26
# Half of float16's range: room for rounding.
_LARGEST_HALF = 32752.0


def to_canonical(spm: SPM, *, half: bool = False) -> SPM:
    """Return the same map with n numbers a stage and one diagonal at the end.

    Works in float64 and returns the dtype given. With `half` the mixers' numbers fit float16: the scale is put
    down after every group instead of once, and the few direct entries that are still too small to divide by are
    raised, which changes the map a little.

    Raises FitError when the result leaves the range of the dtype (chains of many pure swaps), in which case the
    general form has to be stored.
    """
    if spm.structure.mixer is Mixer.CANONICAL:
        if not half:
            return spm
        spm = to_general(spm)
    structure = spm.structure
    dtype = next(array.dtype for named in spm.numbers for array in named.values())
    scale = torch.ones(structure.in_features, dtype=torch.float64)
    numbers: list[dict[str, Tensor]] = []
    for chain, named in zip(structure.chains, spm.numbers, strict=False):
        named = {name: array.detach().double().cpu() for name, array in named.items()}
        if scale.numel() > chain.width:
            if numbers and not half:
                numbers[-1]["diagonals"] = scale[None]
            scale = torch.ones(chain.width, dtype=torch.float64)
        elif scale.numel() < chain.width:
            scale = resize(scale[:, None], chain.width)[:, 0]
        cross, scale, put_down = _carry(chain, structure.mixer, named, scale, half)
        numbers.append({"cross": cross})
        if half:
            numbers[-1]["diagonals"] = torch.stack(put_down)
    if numbers and not half:
        numbers[-1]["diagonals"] = scale[None]
    exact = SPM(structure.canonical(half=half), [*numbers, *spm.to(torch.float64).low_rank_numbers])
    if not _in_range(exact, dtype):
        raise FitError(f"the canonical form of this chain leaves the range of {dtype}; store the general form")
    return exact.to(dtype)


def _in_range(spm: SPM, dtype: torch.dtype) -> bool:
    """Say whether the numbers stay finite in a dtype, and no scale sinks below its normal numbers."""
    tiny = torch.finfo(dtype).tiny
    for named in spm.numbers:
        if not all(bool(array.to(dtype).isfinite().all()) for array in named.values()):
            return False
        scales = named.get("diagonals", torch.zeros(1)).abs()
        if bool(((scales > 0) & (scales < tiny)).any()):
            return False
    return True


def _carry(
    chain: Chain, mixer: Mixer, named: Mapping[str, Tensor], scale: Tensor, half: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Carry the incoming `scale` (width,) through a chain.

    Returns its canonical cross, the scale after it, and the scales that were put down after each group (`half`).
    """
    direct, cross = coefficients(chain, mixer, named)
    between = named["diagonals"].unbind(0) if chain.diagonals else ()
    diagonals = dict(zip(chain.diagonals, between, strict=True))
    out, put_down = [], []
    stage = 0
    for boundary, group in enumerate(chain.groups):
        scale = (scale * diagonals.get(boundary, 1.0))[group.order.indices(chain.width)]
        for stride in group.strides:
            d, c = direct[stage], cross[stage]
            d = torch.where(d == 0, _STAND_IN * c.abs(), d)
            after = d * scale
            other = scale[partner(chain.width, stride)]
            if half:
                least = (c * other).abs() / _LARGEST_HALF
                after = torch.where(after.abs() < least, torch.copysign(least, after), after)
            # A position whose scale is zero stays zero whatever is mixed in: only both zero gives 0/0.
            out.append(torch.where(c == 0, 0.0, c * other / after))
            scale = after
            stage += 1
        if half:
            put_down.append(scale)
            scale = torch.ones_like(scale)
    end = diagonals.get(len(chain.groups), 1.0)
    if half:
        put_down[-1] = put_down[-1] * end
    else:
        scale = scale * end
    return torch.stack(out) if out else cross, scale, put_down


def to_general(spm: SPM) -> SPM:
    """Return the same map with two numbers a feature and stage and the same diagonals."""
    numbers = []
    for chain, named in zip(spm.structure.chains, spm.numbers, strict=False):
        direct, cross = coefficients(chain, spm.structure.mixer, named)
        diagonals = {name: array for name, array in named.items() if name == "diagonals"}
        numbers.append({"direct": direct, "cross": cross, **diagonals})
    return SPM(replace(spm.structure, mixer=Mixer.GENERAL), [*numbers, *spm.low_rank_numbers])


def transpose(spm: SPM) -> SPM:
    """Return the SPM of the transposed map: as many stages; rotations stay, other mixers become general.

    Stages and chains come in reverse, each group's order moves to the group after it, and a pair
    [[d, c], [c', d']] exchanges c and c' (an angle changes its sign).
    """
    if spm.structure.mixer is Mixer.CANONICAL:
        spm = to_general(spm)
    numbers = [
        _transpose_numbers(chain, named) for chain, named in zip(spm.structure.chains, spm.numbers, strict=False)
    ]
    term = [{"left": named["right"].mT, "right": named["left"].mT} for named in spm.low_rank_numbers]
    return SPM(spm.structure.transposed(), [*numbers[::-1], *term])


def _transpose_numbers(chain: Chain, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    turned = {}
    if "angles" in named:
        counts = [pair_count(chain.width, stride) for stride in chain.strides]
        turned["angles"] = -torch.cat(torch.split(named["angles"], counts, -1)[::-1], -1)
    else:
        partners = torch.stack([partner(chain.width, stride) for stride in chain.strides])
        turned["direct"] = named["direct"].flip(-2)
        partners = partners.expand_as(named["cross"])
        turned["cross"] = named["cross"].gather(-1, partners.to(named["cross"].device)).flip(-2)
    if chain.diagonals:
        last = len(chain.groups)
        turned["diagonals"] = torch.stack(
            [
                # It stood before the order of its group; the transposed order comes before it.
                diagonal[..., chain.groups[at].order.indices(chain.width)] if 0 < at < last else diagonal
                for at, diagonal in zip(chain.diagonals, named["diagonals"].unbind(-2), strict=True)
            ][::-1],
            -2,
        )
    return turned
