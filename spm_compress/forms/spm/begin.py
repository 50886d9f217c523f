"""Where the descent of an SPM begins, and at which rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spm_compress.fitting.objective import Objective
from spm_compress.fitting.threads import inner
from spm_compress.forms.descending import Start
from spm_compress.forms.form import Arrays, prefixed
from spm_compress.forms.spm import hierarchical
from spm_compress.forms.spm.block_products import coefficients
from spm_compress.forms.spm.structure import Chain, Gauge, Mixer
from spm_compress.forms.spm.target import Target

if TYPE_CHECKING:
    from spm_compress.forms.settings import FitSettings
    from spm_compress.forms.spm.form import SPM

__all__ = ["begin", "scaled"]

# The start is a chain of random rotations with this share of the weight's norm. From the full norm, long chains
# collapse to the zero map: error 1.000 against 0.856 (MiniLM 384x384, 20 stages).
_START_GAIN = 0.1
# From a closed form the descent only polishes; the full step would throw the start away.
_POLISH = 0.05
# Every general stage scales what the others do, so the step falls as one over their number beyond these: 80 stages on
# 1536x384 end at the zero map in 100 steps of half the size. Half the step, falling as the root instead, was worse at
# 22 and 45 stages (384x384: 0.851 against 0.847 and 0.734 against 0.731).
_SHALLOW = 20
# Fewer steps a stage than these do not recover from the roughest ones, and want a lower rate: 45 stages in 100 steps
# are best at 0.75 of it (0.788 against 0.800 at 1.0 and 0.794 at 0.5).
_STEPS_PER_STAGE = 10


def begin(structure: SPM, objective: Objective, settings: FitSettings, *, alone: bool) -> Start:
    """Return the closed form where there is one for a plain objective, else random rotations.

    alone: whether the chain is the whole map, or a low-rank term stands beside it.
    """
    weights = objective.weights
    target = Target(objective, structure, whole=not alone)
    rate = settings.learning_rate
    if structure.mixer is Mixer.GENERAL:
        rate *= min(1.0, _SHALLOW / structure.stages)
        rate *= min(1.0, settings.steps / (_STEPS_PER_STAGE * structure.stages)) ** 0.25
    if objective.metric is None and alone and hierarchical.is_identifiable(structure):
        arrays = hierarchical.factorize(weights.cpu(), structure)
        on_device = {name: array.to(weights.device) for name, array in arrays.items()}
        return Start(target, on_device, "hierarchical", rate * _POLISH)
    return Start(target, _random(target, structure, settings.seed), "random", rate)


def _random(target: Target, structure: SPM, seed: int) -> Arrays:
    """Random rotations, the same for every weight, in the form of the structure's mixer, `_START_GAIN` of its norm."""
    generator = torch.Generator().manual_seed(seed)
    objective = target.objective
    weights, batch = objective.weights, len(objective.weights)
    drawn = prefixed(_random_rotations(batch, chain, structure.mixer, generator) for chain in structure.chains)
    start = {name: array.to(weights.device) for name, array in drawn.items()}
    entries = target.entries(start)
    gain = _START_GAIN * objective.frobenius() / torch.linalg.vector_norm(entries, dim=(1, 2))
    # On the weight's side of zero: descent from the other side has to pass a saddle (1x1 never does).
    return scaled(structure, start, torch.where(inner(entries, weights) < 0, -gain, gain))


def _random_rotations(batch: int, chain: Chain, mixer: Mixer, generator: torch.Generator) -> dict[str, Tensor]:
    # Below pi/4, so that every pair begins with a diagonal entry to divide by: any angle fits up to 0.3 % better,
    # but spreads the canonical numbers too far for float16.
    angles = torch.empty(chain.pairs).uniform_(-math.pi / 4, math.pi / 4, generator=generator).repeat(batch, 1)
    if mixer is Mixer.GENERAL:
        diagonal, off_diagonal = coefficients(chain, {"angles": angles})
        named = {"diagonal": diagonal, "off_diagonal": off_diagonal}
    else:
        named = {"angles": angles}
    if chain.scales:
        named["scales"] = torch.ones(batch, len(chain.scales), chain.width)
    return named


def scaled(structure: SPM, arrays: Arrays, factor: Tensor) -> dict[str, Tensor]:
    """Return the arrays of factor (k,) times each map of a batch.

    General stages share the factor evenly, which keeps them equally steep, and so do the scales of rotations; in the
    other gauges the last scales have all of it.
    """
    found = dict(arrays)
    sign, size = torch.where(factor < 0, -1.0, 1.0).to(factor), factor.abs()
    if structure.mixer is Mixer.ROTATION:
        names = [name for name in found if name.endswith(".scales")]
        count = sum(len(chain.scales) for chain in structure.chains)
        for name in names:
            found[name] = found[name] * (size ** (1 / count))[:, None, None]
        first = found[names[0]]
        found[names[0]] = torch.cat((first[:, :1] * sign[:, None, None], first[:, 1:]), 1)
        return found
    if structure.gauge is not Gauge.FREE:  # stages have no scale: it stands at the end of the last chain
        name = f"{len(structure.chains) - 1}.scales"
        found[name] = torch.cat((found[name][:, :-1], found[name][:, -1:] * factor[:, None, None]), 1)
        return found
    root = (size ** (1 / max(structure.stages, 1)))[:, None, None]
    for i, chain in enumerate(structure.chains):
        share = root.expand(-1, chain.stages, 1).clone()
        if i == 0:
            share[:, 0, 0] *= sign
        for name in (f"{i}.diagonal", f"{i}.off_diagonal"):
            found[name] = found[name] * share
    return found
