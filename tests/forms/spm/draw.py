"""Random forms and operators for tests."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from spm_compress.codecs import FLOAT32
from spm_compress.forms import Form, Operator
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.sum import Sum

# What a stage may be: two numbers a feature, one (as it is stored), or an angle a pair.
STAGES = [(Mixer.GENERAL, Gauge.FREE), (Mixer.GENERAL, Gauge.CANONICAL), (Mixer.ROTATION, Gauge.FREE)]

sizes = st.sampled_from([1, 2, 3, 5, 7, 10, 16, 24, 33, 37, 48, 64, 100])


def laid_out(into: int, out: int, mixer: Mixer, gauge: Gauge, **options: Any) -> SPM:
    """Return what `build_spm` lays out, in a gauge."""
    structure = build_spm(into, out, mixer=mixer, **options)
    return structure.stored(FLOAT32) if gauge is Gauge.CANONICAL else structure


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int]:
    """In, out: half of them square."""
    square = draw(st.booleans())
    out = draw(sizes)
    return (out if square else draw(sizes)), out


@st.composite
def structures(draw: st.DrawFn, shape: tuple[int, int] | None = None) -> SPM:
    """SPMs of every mixer, gauge and schedule, of `shape` or any."""
    into, out = shape or draw(shapes())
    mixer, gauge = draw(st.sampled_from(STAGES))
    return laid_out(
        into,
        out,
        mixer,
        gauge,
        stages=draw(st.integers(1, 14)),
        schedule=draw(st.sampled_from(list(Schedule))),
        block=draw(st.sampled_from([2, 4, 16, 32])),
        seed=draw(st.integers(0, 3)),
    )


@st.composite
def any_forms(draw: st.DrawFn) -> Form:
    """SPMs, low ranks, and sums of one of each: of rank 1 or full."""
    into, out = draw(shapes())
    kind = draw(st.sampled_from(["spm", "low_rank", "sum"]))
    spm = draw(structures((into, out)))
    term = LowRank(into, out, draw(st.sampled_from([1, min(into, out)])))
    return {"spm": spm, "low_rank": term, "sum": Sum((spm, term))}[kind]


def random_operator(form: Form, seed: int = 0, dtype: torch.dtype = torch.float64) -> Operator:
    """Return a form with Gaussian numbers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = form.shapes.items()
    return Operator(form, {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes})
