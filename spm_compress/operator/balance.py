"""The same map in the form that trains: two numbers a feature and stage, scales spread evenly.

Canonical numbers differ by orders of magnitude, so one step size suits none of them: a small network
that had lost accuracy to compression lost more when its canonical numbers were trained with Adam, and
recovered in the balanced form (docs/measurements.md). Between two stages any diagonal scale can be
moved without changing the map; here each is chosen so that a feature leaves one stage and enters the
next with equal energy.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from spm_compress.operator.canonical import to_general
from spm_compress.operator.pairing import partner
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Chain, Mixer

__all__ = ["balanced"]

# On MiniLM's layers at ten stages, canonical stages differ in energy by up to 9e12; a factor 1.66 is left
# after 30 sweeps, 1.07 after 50, for 34 ms a layer.
_SWEEPS = 50


class _Stage:
    """One stage on the way through all chains, and how its inputs follow from the stage before."""

    def __init__(self, partners: Tensor, direct: Tensor, cross: Tensor, enters: Tensor, leaves: Tensor) -> None:
        # enters: (width,) where each input stood before the orders; leaves: where the rows before went
        self.partner = partners
        self.direct, self.cross = direct.clone(), cross.clone()
        # Features that must share a scale have the same key: copies of one, or the terms of one sum.
        self.keys = min(len(enters), len(leaves))
        self.input_key, self.previous_key = enters % self.keys, leaves % self.keys

    def row_energy(self) -> Tensor:
        return self.direct**2 + self.cross**2

    def column_energy(self) -> Tensor:
        return self.direct**2 + self.cross[self.partner] ** 2

    def scale_rows(self, scale: Tensor) -> None:
        self.direct, self.cross = self.direct * scale, self.cross * scale

    def scale_columns(self, scale: Tensor) -> None:
        self.direct, self.cross = self.direct * scale, self.cross * scale[self.partner]


def balanced(spm: SPM) -> SPM:
    """Return the same map with the general mixer, no diagonals, and balanced scales between stages."""
    dtype = next(array.dtype for named in spm.numbers for array in named.values())
    general = to_general(spm.to(torch.float64))
    stages = _stages(general)
    for _ in range(_SWEEPS):
        for left, right in itertools.pairwise(stages):
            rows = torch.zeros(right.keys, dtype=torch.float64).index_add(0, right.previous_key, left.row_energy())
            columns = torch.zeros(right.keys, dtype=torch.float64).index_add(0, right.input_key, right.column_energy())
            scale = torch.where((rows > 0) & (columns > 0), (columns / rows) ** 0.25, 1.0)
            left.scale_rows(scale[right.previous_key])
            right.scale_columns(1 / scale[right.input_key])
    chains = tuple(Chain(chain.width, chain.groups) for chain in spm.structure.chains)
    numbers = []
    for chain in chains:
        own, stages = stages[: chain.stages], stages[chain.stages :]
        direct, cross = torch.stack([s.direct for s in own]), torch.stack([s.cross for s in own])
        numbers.append({"direct": direct, "cross": cross})
    structure = replace(spm.structure, mixer=Mixer.GENERAL, chains=chains)
    return SPM(structure, [*numbers, *general.low_rank_numbers]).to(dtype)


def _stages(general: SPM) -> list[_Stage]:
    """Lay the stages out in a row, the diagonals folded into them."""
    stages: list[_Stage] = []
    leaves = torch.arange(general.structure.in_features)
    for chain, named in zip(general.structure.chains, general.numbers, strict=False):
        diagonals = dict(zip(chain.diagonals, named["diagonals"] if chain.diagonals else (), strict=True))
        numbers = iter(zip(named["direct"], named["cross"], strict=True))
        waiting = torch.ones(chain.width, dtype=torch.float64)  # scales that no stage of the chain has taken yet
        enters = torch.arange(chain.width)
        for boundary, group in enumerate(chain.groups):
            order = group.order.indices(chain.width)
            waiting, enters = (waiting * diagonals.get(boundary, 1.0))[order], enters[order]
            for stride in group.strides:
                stage = _Stage(partner(chain.width, stride), *next(numbers), enters, leaves)
                stage.scale_columns(waiting)
                stages.append(stage)
                waiting, enters = torch.ones_like(waiting), torch.arange(chain.width)
                leaves = enters
        leaves = torch.argsort(enters)  # orders after the last stage have moved its rows
        waiting = waiting * diagonals.get(len(chain.groups), 1.0)
        stages[-1].scale_rows(waiting[leaves])
    return stages
