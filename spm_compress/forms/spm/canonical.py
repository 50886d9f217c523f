"""Exact conversions: general stages to the canonical gauge and back, and any SPM to that of the transposed map.

A stage that follows a scaling diag(s) is itself a scaling that follows a canonical stage:

    d_i s_i x_i + c_i s_p x_p = (d_i s_i) * (x_i + (c_i s_p) / (d_i s_i) x_p)

so a running scale can be carried through the whole chain and stands once, at its end. The
numbers of each stage halve (2n to n) and no precision is lost: a diagonal scaling changes the exponents
of intermediate values, not their relative rounding errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.codecs import FLOAT32, Codec
from spm_compress.errors import FitError
from spm_compress.forms.form import Arrays, Operator, prefixed
from spm_compress.forms.spm.block_products import coefficients
from spm_compress.forms.spm.pairing import pair_count, partner
from spm_compress.forms.spm.plan import resize
from spm_compress.forms.spm.structure import Chain, Gauge, Mixer

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["to_canonical", "to_general", "transpose"]

# A diagonal entry of zero cannot divide. This much of its off-diagonal entry stands in for it: less than the
# rounding of float32 for a pure swap.
_STAND_IN = 2.0**-26


def to_canonical(structure: SPM, arrays: Arrays, codec: Codec = FLOAT32) -> Operator:
    """Return the same map in general stages of the canonical gauge, as `SPM.stored` lays them out for the codec.

    Works in float64 and returns the dtype given. For a codec of a short range the scale is put down after every group
    instead of once, and the few diagonal entries that are still too small to divide by are raised, which changes the
    map a little.

    Raises FitError when the result leaves the range of the dtype (chains of many pure swaps), in which case the
    free gauge has to be stored.
    """
    is_short = codec.largest < FLOAT32.largest
    if structure.gauge is Gauge.CANONICAL:
        if not is_short:
            return Operator(structure, arrays)
        general = to_general(structure, arrays)
        structure, arrays = replace(structure, gauge=Gauge.FREE), general.arrays
    most = codec.largest / 2 if is_short else None  # room for rounding
    dtype = next(iter(arrays.values())).dtype
    scale = torch.ones(structure.in_features, dtype=torch.float64)
    by_chain: list[dict[str, Tensor]] = []
    for chain, named in zip(structure.chains, structure.by_chain(arrays), strict=True):
        named = {name: array.detach().double().cpu() for name, array in named.items()}
        if scale.numel() > chain.width:
            if by_chain and not is_short:
                by_chain[-1]["scales"] = scale[None]
            scale = torch.ones(chain.width, dtype=torch.float64)
        elif scale.numel() < chain.width:
            scale = resize(scale[:, None], chain.width)[:, 0]
        off_diagonal, scale, put_down = _carry(chain, named, scale, most)
        by_chain.append({"off_diagonal": off_diagonal})
        if is_short:
            by_chain[-1]["scales"] = torch.stack(put_down)
    if not is_short:
        by_chain[-1]["scales"] = scale[None]
    exact = prefixed(by_chain)
    if not _in_range(exact, dtype):
        raise FitError(f"the canonical gauge of this chain leaves the range of {dtype}; store the free one")
    return Operator(replace(structure, mixer=Mixer.GENERAL).stored(codec), exact).to(dtype)


def _in_range(arrays: Arrays, dtype: torch.dtype) -> bool:
    """Say whether the numbers stay finite in a dtype, and no scale sinks below its normal numbers."""
    tiny = torch.finfo(dtype).tiny
    if not all(bool(array.to(dtype).isfinite().all()) for array in arrays.values()):
        return False
    scales = [array.abs() for name, array in arrays.items() if name.endswith(".scales")]
    return not any(bool(((each > 0) & (each < tiny)).any()) for each in scales)


def _carry(
    chain: Chain, named: Mapping[str, Tensor], scale: Tensor, most: float | None
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Carry the incoming `scale` (width,) through a chain.

    most: largest coefficient that may come out, None for any. Returns the chain's canonical off-diagonal coefficients,
    the scale after it, and, with `most`, the scales that were put down after each group.
    """
    diagonal, off_diagonal = coefficients(chain, named)
    between = named["scales"].unbind(0) if chain.scales else ()
    scales = dict(zip(chain.scales, between, strict=True))
    out, put_down = [], []
    stage = 0
    for boundary, group in enumerate(chain.groups):
        scale = (scale * scales.get(boundary, 1.0))[group.order.indices(chain.width)]
        for stride in group.strides:
            d, c = diagonal[stage], off_diagonal[stage]
            d = torch.where(d == 0, _STAND_IN * c.abs(), d)
            after = d * scale
            other = scale[partner(chain.width, stride)]
            if most is not None:
                least = (c * other).abs() / most
                after = torch.where(after.abs() < least, torch.copysign(least, after), after)
            # A position whose scale is zero stays zero whatever is mixed in: only both zero gives 0/0.
            out.append(torch.where(c == 0, 0.0, c * other / after))
            scale = after
            stage += 1
        if most is not None:
            put_down.append(scale)
            scale = torch.ones_like(scale)
    end = scales.get(len(chain.groups), 1.0)
    if most is not None:
        put_down[-1] = put_down[-1] * end
    else:
        scale = scale * end
    return torch.stack(out) if out else off_diagonal, scale, put_down


def to_general(structure: SPM, arrays: Arrays) -> Operator:
    """Return the same map with two numbers a feature and stage and the same scales."""
    general: dict[str, Tensor] = {}
    for i, (chain, named) in enumerate(zip(structure.chains, structure.by_chain(arrays), strict=True)):
        general[f"{i}.diagonal"], general[f"{i}.off_diagonal"] = coefficients(chain, named)
        if chain.scales:
            general[f"{i}.scales"] = named["scales"]
    return Operator(replace(structure, mixer=Mixer.GENERAL, gauge=Gauge.FREE), general)


def transpose(structure: SPM, arrays: Arrays) -> Operator:
    """Return the SPM of the transposed map: as many stages; rotations stay, others come in the free gauge.

    Stages and chains come in reverse, each group's order moves to the group after it, and a pair
    [[d, c], [c', d']] exchanges c and c' (an angle changes its sign).
    """
    if structure.gauge is not Gauge.FREE:
        general = to_general(structure, arrays)
        structure, arrays = replace(structure, gauge=Gauge.FREE), general.arrays
    by_chain = [
        _transposed(chain, named) for chain, named in zip(structure.chains, structure.by_chain(arrays), strict=True)
    ][::-1]
    return Operator(structure.transposed(), prefixed(by_chain))


def _transposed(chain: Chain, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    back = {}
    if "angles" in named:
        counts = [pair_count(chain.width, stride) for stride in chain.strides]
        back["angles"] = -torch.cat(torch.split(named["angles"], counts, -1)[::-1], -1)
    else:
        partners = torch.stack([partner(chain.width, stride) for stride in chain.strides])
        back["diagonal"] = named["diagonal"].flip(-2)
        partners = partners.expand_as(named["off_diagonal"])
        back["off_diagonal"] = named["off_diagonal"].gather(-1, partners.to(named["off_diagonal"].device)).flip(-2)
    if chain.scales:
        last = len(chain.groups)
        back["scales"] = torch.stack(
            [
                # It stood before the order of its group; the transposed order comes before it.
                row[..., chain.groups[at].order.indices(chain.width)] if 0 < at < last else row
                for at, row in zip(chain.scales, named["scales"].unbind(-2), strict=True)
            ][::-1],
            -2,
        )
    return back
