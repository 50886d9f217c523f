"""Closed-form factorization of a matrix into mixing stages, by splits of rank one.

Cut a chain between two stages. Each feature at the cut joins one connected component of the stages
before it (some input features) with one of the stages after it (some output features). Where
no two features join the same two components, the sub-matrix of those outputs and inputs is the
outer product that goes through that one feature: its best rank-one approximation is the
chain's two halves there, up to a scale. Cutting again on each side gives every stage. Exact when
the matrix is such a chain, and a good start when it is not (Le, Zheng, Riccietti, Gribonval,
"Fast learning of fast transforms, with guarantees", ICASSP 2022; arXiv 2110.00483).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.fitting.truncated_svd import rank_one
from spm_compress.forms.spm.pairing import fixed_frame, partner
from spm_compress.forms.spm.structure import Chain, Mixer

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["factorize", "is_identifiable"]


def is_identifiable(structure: SPM) -> bool:
    """Say whether the chain can be cut into single stages, each cut through one feature at most."""
    (width, *others) = structure.widths
    if len(structure.chains) != 1 or set(others) != {width} or width < 2:
        return False
    partners, _ = fixed_frame(structure.chains[0].groups, width)
    return len(partners) <= (width - 1).bit_length() and _can_split(partners)


def _can_split(partners: Tensor) -> bool:
    if len(partners) == 1:
        return True
    cut = _cut(partners)
    return cut is not None and _can_split(partners[:cut]) and _can_split(partners[cut:])


def _cut(partners: Tensor) -> int | None:
    """Return the cut nearest the middle at which no two features join the same two components."""
    stages, n = partners.shape
    for cut in sorted(range(1, stages), key=lambda cut: abs(2 * cut - stages)):
        joined = _components(partners[:cut]) * n + _components(partners[cut:])
        if torch.unique(joined).numel() == n:
            return cut
    return None


def factorize(weights: Tensor, structure: SPM) -> dict[str, Tensor]:
    """Return arrays (k, ...) of an SPM close to each of weights (k, n, n), for an identifiable structure.

    A structure of rotations gets the nearest rotations, the rest in its middle diagonal.
    """
    chain = structure.chains[0]
    partners, exit_order = fixed_frame(chain.groups, chain.width)
    # Into the frame of the inputs: row i of the weight is feature exit_order[i].
    framed = torch.empty_like(weights)
    framed[:, exit_order] = weights
    stages = [torch.stack(_split(w.double(), partners)) for w in framed]
    # per matrix (stages, width, 2): diagonal and off_diagonal in the fixed frame; then into the chain's frame
    fixed = torch.stack(stages)
    at = torch.arange(chain.width)
    diagonal, off_diagonal = [], []
    stage = 0
    for group in chain.groups:
        at = at[group.order.indices(chain.width)]
        for _ in range(group.stages):
            diagonal.append(fixed[:, stage, at, 0])
            off_diagonal.append(fixed[:, stage, at, 1])
            stage += 1
    numbers = {"diagonal": torch.stack(diagonal, 1), "off_diagonal": torch.stack(off_diagonal, 1)}
    if structure.mixer is Mixer.ROTATION:
        numbers = _nearest_rotations(numbers, chain)
    elif chain.scales:
        numbers["scales"] = torch.ones(len(weights), len(chain.scales), chain.width, dtype=torch.float64)
    return {f"0.{name}": array.to(weights.dtype) for name, array in numbers.items()}


def _split(weight: Tensor, partners: Tensor) -> list[Tensor]:
    """Factor weight (n, n) into len(partners) stages, each (n, 2): diagonal and off_diagonal."""
    stages, n = partners.shape
    if stages == 1:
        index = torch.arange(n)
        off_diagonal = torch.where(partners[0] == index, 0.0, weight[index, partners[0]])
        return [torch.stack((weight.diagonal(), off_diagonal), -1)]
    cut = _cut(partners)
    assert cut is not None  # is_identifiable has been asked
    cols, cols_valid = _component_members(_components(partners[:cut]))
    rows, rows_valid = _component_members(_components(partners[cut:]))
    # block f: what reaches the outputs `rows[f]` from the inputs `cols[f]`, all through feature f
    part = weight[rows[:, :, None], cols[:, None, :]]
    part = part * (rows_valid[:, :, None] & cols_valid[:, None, :])
    left, right = rank_one(part)
    after = torch.zeros_like(weight)
    before = torch.zeros_like(weight)
    feature = torch.arange(n)
    after.index_put_((rows, feature[:, None].expand_as(rows)), left * rows_valid, accumulate=True)
    before.index_put_((feature[:, None].expand_as(cols), cols), right * cols_valid, accumulate=True)
    return _split(before, partners[:cut]) + _split(after, partners[cut:])


def _components(partners: Tensor) -> Tensor:
    """Return (n,) int64: the smallest feature that each feature is connected with by the pairings."""
    n = partners.shape[1]
    label = torch.arange(n)
    while True:
        lower = label
        for pairing in partners:
            lower = torch.minimum(lower, lower[pairing])
        if torch.equal(lower, label):
            return label
        label = lower


def _component_members(label: Tensor) -> tuple[Tensor, Tensor]:
    """Return (n, k): for every feature the members of its component, padded, and which of them are real."""
    n = label.numel()
    order = torch.argsort(label, stable=True)
    _, inverse, counts = torch.unique(label, return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    slot = torch.arange(int(counts.max()))
    valid = slot[None] < counts[:, None]
    table = order[(starts[:, None] + slot[None]).clamp(max=n - 1)]
    table = torch.where(valid, table, table[:, :1])
    return table[inverse], valid[inverse]


def _nearest_rotations(numbers: dict[str, Tensor], chain: Chain) -> dict[str, Tensor]:
    """Turn general stages into rotations around one diagonal, exactly if they are that up to scales.

    The scales are carried from the input and from the output towards the diagonal, and meet there.
    """
    diagonal, off_diagonal = numbers["diagonal"], numbers["off_diagonal"]
    boundary = chain.scales[0]
    before, after = chain.groups[:boundary], chain.groups[boundary:]
    angles: dict[int, Tensor] = {}
    scale = torch.ones_like(diagonal[:, 0])
    stage = 0
    for group in before:
        scale = scale[:, group.order.indices(chain.width)]
        for stride in group.strides:
            other = partner(chain.width, stride)
            d, c = diagonal[:, stage] * scale, off_diagonal[:, stage] * scale[:, other]
            angles[stage], scale = _rotate_rows(d, c, stride)
            stage += 1
    back = torch.ones_like(scale)
    stage = len(chain.strides)
    for group in reversed(after):
        for stride in reversed(group.strides):
            stage -= 1
            other = partner(chain.width, stride)
            # The transposed pair: its rows are the columns of this one, its angle the negative.
            d, c = diagonal[:, stage] * back, (off_diagonal[:, stage] * back)[:, other]
            transposed, back = _rotate_rows(d, c, stride)
            angles[stage] = -transposed
        back = back[:, group.order.inverse(chain.width).indices(chain.width)]
    return {
        "angles": torch.cat([angles[stage] for stage in range(len(chain.strides))], -1),
        "scales": torch.stack([scale * back, *[torch.ones_like(scale)] * (len(chain.scales) - 1)], 1),
    }


def _rotate_rows(diagonal: Tensor, off_diagonal: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Write pairs [[d, c], [c', d']] as diag(scale) times the nearest rotation: angles and scales.

    diagonal, off_diagonal: (k, width). The direction of each row gives the angle modulo pi, so the two are
    averaged as squared complex numbers of modulus one.
    """
    width = diagonal.shape[1]
    position = torch.arange(width)
    lower = position[position < partner(width, stride)]
    upper = lower + stride
    first = torch.complex(diagonal[:, lower], -off_diagonal[:, lower])
    second = torch.complex(diagonal[:, upper], off_diagonal[:, upper])
    angle = (torch.sgn(first) ** 2 + torch.sgn(second) ** 2).angle() / 2
    unit = torch.polar(torch.ones_like(angle), -angle)
    scale = diagonal.clone()
    scale[:, lower], scale[:, upper] = (first * unit).real, (second * unit).real
    return angle, scale
