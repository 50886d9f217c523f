"""Whatever is tied, excluded or asked for: one decision for all names of a weight."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from spm_compress import CompressSettings, FitSettings, expand, fit_model, open_source
from spm_compress.compress.inspection import inspect_model
from spm_compress.errors import UsageError

NAMES = ("a.weight", "b.weight", "embed.weight", "c.weight", "d.weight")
QUICK = FitSettings(stages=2, block=8, steps=1)


@settings(max_examples=25)
@given(
    groups=st.lists(st.integers(0, 2), min_size=len(NAMES), max_size=len(NAMES)),
    excluded=st.sets(st.sampled_from(NAMES), max_size=2),
    included=st.sets(st.sampled_from(NAMES), max_size=3),
)
def test_one_decision_for_all_names(groups: list[int], excluded: set[str], included: set[str]) -> None:
    values = [torch.randn(40, 40, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        save_file(
            {name: values[i].clone() for name, i in zip(NAMES, groups, strict=True)}, Path(folder, "m.safetensors")
        )
        source = open_source(Path(folder, "m.safetensors"))
        wanted = {"include": tuple(sorted(included)), "exclude": tuple(sorted(excluded))}
        try:
            artifact = fit_model(source, CompressSettings(QUICK, **wanted), beside=Path(folder))  # type: ignore[arg-type]
        except UsageError:
            return
        fitted = {name for layer in artifact.layers for name in layer.names}
        dense = expand(artifact).tensors
        for i in range(3):
            tied = {name for name, group in zip(NAMES, groups, strict=True) if group == i}
            assert tied <= fitted or not tied & fitted
            assert all(torch.equal(dense[name], dense[min(tied)]) for name in tied)
            if tied & fitted:  # a table and what is excluded stay, unless asked for
                assert not (tied & (excluded | {"embed.weight"}) and not tied & included)
        assert {each.name for each in artifact.kept} == set(NAMES) - fitted
        if fitted:  # and an inspection is of the same weights
            found = inspect_model(source, probe_steps=0, **wanted)  # type: ignore[arg-type]
            assert {layer.name for layer in found.layers} == {layer.name for layer in artifact.layers}
