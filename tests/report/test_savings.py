"""Figures of the report, counted again from the file and with numpy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, summarize, write_artifact
from spm_compress.checkpoint import Artifact
from spm_compress.report import Savings, to_json


@pytest.fixture
def written(tmp_path: Path) -> tuple[Artifact, Path]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 96, generator=generator)
    tensors = {"a.weight": weight, "tied.weight": weight.clone(), "bias": torch.ones(64), "ids": torch.arange(5)}
    save_file(tensors, tmp_path / "m.safetensors")
    settings = CompressSettings(FitSettings(steps=10, block=8, schedule=FitSettings().schedule))
    artifact = fit_model(open_source(tmp_path / "m.safetensors"), settings, beside=tmp_path)
    write_artifact(artifact, tmp_path / "m.spm.safetensors")
    return artifact, tmp_path / "m.spm.safetensors"


def test_every_figure_is_that_of_the_file(written: tuple[Artifact, Path]) -> None:
    artifact, path = written
    savings = summarize(artifact, path)
    stored = load_file(path)
    numbers = {name: array for name, array in stored.items() if ".spm." in name}
    (layer,) = savings.layers
    assert layer.parameters.before == 64 * 96
    assert layer.parameters.after == sum(array.numel() for array in numbers.values())
    assert layer.bytes.before == 4 * 64 * 96  # tied names are one weight
    assert layer.bytes.after == sum(array.nbytes for array in numbers.values())
    assert savings.model_bytes.after == path.stat().st_size
    assert savings.model_bytes.before == 4 * 64 * 96 + 64 * 4 + 5 * 8
    assert savings.model_parameters.after == layer.parameters.after + 64  # integers are no parameters
    assert layer.bytes.kept + layer.bytes.removed == 1.0
    assert layer.form_text == "spm: stages 10"


def test_the_svd_beside_it_is_of_the_same_size(written: tuple[Artifact, Path]) -> None:
    artifact, path = written
    weight = load_file(path.with_name("m.safetensors"))["a.weight"].double().numpy()
    values = np.linalg.svd(weight, compute_uv=False) ** 2
    (layer,) = summarize(artifact, path).layers
    rank = layer.parameters.after / sum(weight.shape)
    more, less = (np.sqrt(values[r:].sum() / values.sum()) for r in (int(rank), int(rank) + 1))
    assert less <= layer.svd_error <= more


@pytest.mark.parametrize(
    ("error", "words"),
    [(0.01, "recovered closely"), (0.2, "recovered in part"), (0.9, "will not work without recovery")],
)
def test_the_verdict_says_in_words_what_the_errors_mean(
    error: float, words: str, written: tuple[Artifact, Path]
) -> None:
    artifact, path = written
    layers = tuple(replace(layer, error=error) for layer in artifact.layers)
    assert words in summarize(replace(artifact, layers=layers), path).verdict


def test_json_has_a_schema_and_all_of_it(written: tuple[Artifact, Path]) -> None:
    savings: Savings = summarize(*written)
    found = json.loads(json.dumps(to_json(savings)))
    assert found["schema"] == "spm-compress/report/3"
    form = {"kind": "spm", "stages": 10, "mixer": "general", "gauge": "canonical"}
    assert found["layers"][0]["form"] == form
    assert found["layers"][0]["error"] == savings.layers[0].error
    assert {kept["name"] for kept in found["kept"]} == {"bias", "ids"}
    assert found["model"]["bytes"]["after"] == written[1].stat().st_size
