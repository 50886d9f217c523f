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
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.forms.form import Arrays, Operator
from spm_compress.forms.spm.canonical import to_general
from spm_compress.forms.spm.pairing import partner
from spm_compress.forms.spm.structure import Chain, Gauge, Mixer

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["balanced"]

# On MiniLM's layers at ten stages, canonical stages differ in energy by up to 9e12; a factor 1.66 is left
# after 30 sweeps, 1.07 after 50, for 34 ms a layer.
_SWEEPS = 50


class _Stage:
    """One stage on the way through all chains, and how its inputs follow from the stage before."""

    def __init__(
        self, partners: Tensor, diagonal: Tensor, off_diagonal: Tensor, enters: Tensor, leaves: Tensor
    ) -> None:
        # enters: (width,) where each input stood before the orders; leaves: where the rows before went
        self.partner = partners
        self.diagonal, self.off_diagonal = diagonal.clone(), off_diagonal.clone()
        # Features that must share a scale have the same key: copies of one, or the terms of one sum.
        self.keys = min(len(enters), len(leaves))
        self.input_key, self.previous_key = enters % self.keys, leaves % self.keys

    def row_energy(self) -> Tensor:
        return self.diagonal**2 + self.off_diagonal**2

    def column_energy(self) -> Tensor:
        return self.diagonal**2 + self.off_diagonal[self.partner] ** 2

    def scale_rows(self, scale: Tensor) -> None:
        self.diagonal, self.off_diagonal = self.diagonal * scale, self.off_diagonal * scale

    def scale_columns(self, scale: Tensor) -> None:
        self.diagonal, self.off_diagonal = self.diagonal * scale, self.off_diagonal * scale[self.partner]


def balanced(structure: SPM, arrays: Arrays) -> Operator:
    """Return the same map with general stages in the free gauge, no scales apart, and balanced ones between stages."""
    dtype = next(iter(arrays.values())).dtype
    general = to_general(structure, {name: array.to(torch.float64) for name, array in arrays.items()})
    free = replace(structure, mixer=Mixer.GENERAL, gauge=Gauge.FREE)
    stages = _stages(free, general.arrays)
    for _ in range(_SWEEPS):
        for left, right in itertools.pairwise(stages):
            rows = torch.zeros(right.keys, dtype=torch.float64).index_add(0, right.previous_key, left.row_energy())
            columns = torch.zeros(right.keys, dtype=torch.float64).index_add(0, right.input_key, right.column_energy())
            scale = torch.where((rows > 0) & (columns > 0), (columns / rows) ** 0.25, 1.0)
            left.scale_rows(scale[right.previous_key])
            right.scale_columns(1 / scale[right.input_key])
    chains = tuple(Chain(chain.width, chain.groups) for chain in structure.chains)
    spread: dict[str, Tensor] = {}
    for i, chain in enumerate(chains):
        own, stages = stages[: chain.stages], stages[chain.stages :]
        spread[f"{i}.diagonal"] = torch.stack([stage.diagonal for stage in own])
        spread[f"{i}.off_diagonal"] = torch.stack([stage.off_diagonal for stage in own])
    return Operator(replace(free, chains=chains), spread).to(dtype)


def _stages(structure: SPM, arrays: Arrays) -> list[_Stage]:
    """Lay the stages out in a row, the scales folded into them."""
    stages: list[_Stage] = []
    leaves = torch.arange(structure.in_features)
    for chain, named in zip(structure.chains, structure.by_chain(arrays), strict=True):
        scales = dict(zip(chain.scales, named["scales"] if chain.scales else (), strict=True))
        numbers = iter(zip(named["diagonal"], named["off_diagonal"], strict=True))
        waiting = torch.ones(chain.width, dtype=torch.float64)  # scales that no stage of the chain has taken yet
        enters = torch.arange(chain.width)
        for boundary, group in enumerate(chain.groups):
            order = group.order.indices(chain.width)
            waiting, enters = (waiting * scales.get(boundary, 1.0))[order], enters[order]
            for stride in group.strides:
                stage = _Stage(partner(chain.width, stride), *next(numbers), enters, leaves)
                stage.scale_columns(waiting)
                stages.append(stage)
                waiting, enters = torch.ones_like(waiting), torch.arange(chain.width)
                leaves = enters
        leaves = torch.argsort(enters)  # orders after the last stage have moved its rows
        waiting = waiting * scales.get(len(chain.groups), 1.0)
        stages[-1].scale_rows(waiting[leaves])
    return stages
