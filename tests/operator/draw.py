"""Random operators for tests."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st

from spm_compress.operator import SPM, Mixer, Schedule, Structure, build_structure

sizes = st.sampled_from([1, 2, 3, 5, 7, 10, 16, 24, 33, 37, 48, 64, 100])


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    square = draw(st.booleans())
    out = draw(sizes)
    into = out if square else draw(sizes)
    rank = draw(st.sampled_from([0, 0, 1, min(into, out)]))
    if rank and draw(st.booleans()):
        return Structure(draw(st.sampled_from(list(Mixer))), into, out, (), rank)
    structure = build_structure(
        into,
        out,
        stages=draw(st.integers(1, 14)),
        mixer=draw(st.sampled_from(list(Mixer))),
        schedule=draw(st.sampled_from(list(Schedule))),
        block=draw(st.sampled_from([2, 4, 16, 32])),
        seed=draw(st.integers(0, 3)),
    )
    return replace(structure, rank=rank)


def random_spm(structure: Structure, seed: int = 0, dtype: torch.dtype = torch.float64) -> SPM:
    generator = torch.Generator().manual_seed(seed)
    return SPM(
        structure,
        [
            {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in named.items()}
            for named in structure.shapes()
        ],
    )
