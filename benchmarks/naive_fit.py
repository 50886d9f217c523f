"""The plain way to fit an SPM, as a baseline: every stage by itself through autograd, applied to the identity.

The stages are those of the library's SPM, seen in a fixed frame (the paper's form): the same family of maps,
one gather a stage. It is written x[partner], whose gradient adds up row by row on a CPU; `selects` writes the same as
index_select, the first thing to try when that is too slow.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spm_compress.forms.spm import SPM
from spm_compress.forms.spm.pairing import fixed_frame
from spm_compress.forms.spm.plan import resize
from spm_compress.forms.spm.structure import Chain

__all__ = ["Progress", "naive_fit"]

# As the library: norm of the start relative to the weight's, step size, Adam's memories, share of rising steps.
START_GAIN, LEARNING_RATE, BETAS, WARM_UP = 0.1, 0.16, (0.9, 0.99), 0.05


@dataclass(frozen=True)
class Progress:
    """After so many steps and seconds the relative error is this."""

    step: int
    seconds: float
    error: float


class NaiveChain(nn.Module):
    """Stages x -> diagonal x + off_diagonal x[partner], then one permutation; begins as random rotations."""

    partners: Tensor
    order: Tensor

    def __init__(self, chain: Chain, generator: torch.Generator, selects: bool) -> None:
        super().__init__()
        self.selects = selects
        partners, order = fixed_frame(chain.groups, chain.width)
        self.register_buffer("partners", partners)  # (stages, width)
        self.register_buffer("order", order)  # (width,)
        feature = torch.arange(chain.width)
        angle = (torch.rand(partners.shape, generator=generator) - 0.5) * (math.pi / 2)
        angle = angle.gather(1, torch.minimum(partners, feature))  # one a pair
        self.diagonal = nn.Parameter(angle.cos())
        self.off_diagonal = nn.Parameter(angle.sin() * (feature - partners).sign())

    def forward(self, x: Tensor) -> Tensor:  # (n, rows) -> (width, rows)
        x = resize(x, len(self.order))
        for partner, diagonal, off_diagonal in zip(self.partners, self.diagonal, self.off_diagonal, strict=True):
            x = diagonal[:, None] * x + off_diagonal[:, None] * self.gathered(x, partner)
        return self.gathered(x, self.order)

    def gathered(self, x: Tensor, rows: Tensor) -> Tensor:
        return x.index_select(0, rows) if self.selects else x[rows]


def naive_fit(
    weight: Tensor, form: SPM, steps: int, stop: int, *, seed: int = 0, selects: bool = False
) -> Iterator[Progress]:
    """Yield the progress after each of the first `stop` steps of a descent that is planned for `steps`."""
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    target = weight.float() * math.sqrt(min(weight.shape)) / weight.norm()
    eye = torch.eye(form.in_features)
    chains = nn.Sequential(*(NaiveChain(chain, generator, selects) for chain in form.chains))

    def dense() -> Tensor:
        return resize(chains(eye), form.out_features)

    with torch.no_grad():
        gain = START_GAIN * float(target.norm() / dense().norm())
        for parameter in chains.parameters():
            parameter.mul_(gain ** (1 / form.stages))
    adam = torch.optim.Adam(chains.parameters(), lr=LEARNING_RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: share_of_rate(step, steps))
    for step in range(stop + 1):
        loss = (dense() - target).square().sum()
        yield Progress(step, time.perf_counter() - began, math.sqrt(loss.item()) / float(target.norm()))
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()


def share_of_rate(step: int, steps: int) -> float:
    """Rise linearly over the first steps, then fall as a cosine."""
    return min(1.0, (step + 1) / (WARM_UP * steps + 1)) * (1 + math.cos(math.pi * step / steps)) / 2
