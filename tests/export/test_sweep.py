"""The sweep over layer sizes: every cell, every way to run the layer."""

from __future__ import annotations

import pytest

from spm_compress.errors import UsageError
from spm_compress.export.measuring.sweep import SweepSettings, sweep
from spm_compress.forms.lowering import lowerings


def test_every_cell_times_every_lowering_beside_float32_and_int8() -> None:
    settings = SweepSettings(features=(7, 64), batches=(1, 3), stages=6, repeats=3, seconds=0.1)
    cells = list(sweep(settings))
    assert [(cell.features, cell.batch) for cell in cells] == [(7, 1), (7, 3), (64, 1), (64, 3)]
    for cell in cells:
        assert list(cell.lowerings) == [lowering.name for lowering in lowerings()]
        timings = [cell.float32, cell.int8, *cell.lowerings.values()]
        assert all(0 < timing.median <= timing.p90 for timing in timings)


def test_what_cannot_be_swept_is_refused_before_the_first_cell() -> None:
    with pytest.raises(UsageError, match="`features` 40000: the dense layer would have 2 GB"):
        sweep(SweepSettings(features=(64, 40000)))
    with pytest.raises(UsageError, match="`provider` Nonsense"):
        sweep(SweepSettings(provider="Nonsense"))
