"""A whole model: which weights are taken, ties, dtypes, determinism, honest errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, write_artifact
from spm_compress.checkpoint import Artifact, FittedLayer
from spm_compress.codecs import FLOAT16, FLOAT32
from spm_compress.errors import SourceError, UsageError
from spm_compress.fitting import StepReport
from spm_compress.forms.form import stored_bytes
from spm_compress.forms.spm import Mixer

QUICK = CompressSettings(FitSettings(steps=10, block=8))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fitted(folder: Path, settings: CompressSettings = QUICK, **tensors: torch.Tensor) -> Artifact:
    path = folder / "model.safetensors"
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return fit_model(open_source(path), settings, beside=folder)


def test_what_is_no_dense_map_stays_with_its_reason(tmp_path: Path) -> None:
    artifact = fitted(
        tmp_path,
        replace(QUICK, exclude=("small.*",)),
        fc__weight=random(64, 64),
        fc__bias=random(64),
        embeddings__word_embeddings__weight=random(100, 64),
        wpe__weight=random(100, 64),
        steps=torch.ones(64, 64, dtype=torch.int64),
        conv__weight=random(64, 64, 3, 3),
        head__weight=random(10, 64),
        small__weight=random(33, 32),
    )
    assert [layer.name for layer in artifact.layers] == ["fc.weight"]
    reasons = {kept.name: kept.reason for kept in artifact.kept}
    assert reasons == {
        "fc.bias": "1-D, not a matrix",
        "embeddings.word_embeddings.weight": "a lookup table by its name",
        "wpe.weight": "a lookup table by its name",
        "steps": "I64: whole numbers, perhaps of packed weights; left as it is",
        "conv.weight": "4-D, by its shape a kernel of a convolution wider than 1x1, not a matrix",
        "head.weight": "narrower than 32 features",
        "small.weight": "excluded",
    }


def test_a_weight_that_would_not_get_smaller_stays(tmp_path: Path) -> None:
    settings = replace(QUICK, fit=replace(QUICK.fit, stages=40))
    artifact = fitted(tmp_path, settings, a__weight=random(48, 32), b__weight=random(128, 128))
    assert [layer.name for layer in artifact.layers] == ["b.weight"]
    (kept,) = artifact.kept
    assert kept.reason.startswith("would not get smaller: ")


def test_globs_choose_and_a_wrong_one_names_its_neighbours(tmp_path: Path) -> None:
    weights = {
        "a__0__weight": random(64, 64),
        "a__1__weight": random(64, 64, seed=1),
        "b__weight": random(64, 64, seed=2),
    }
    artifact = fitted(tmp_path, replace(QUICK, include=("a.*",), exclude=("*1*",)), **weights)
    assert [layer.name for layer in artifact.layers] == ["a.0.weight"]
    assert {kept.name: kept.reason for kept in artifact.kept} == {"a.1.weight": "excluded", "b.weight": "not included"}
    for wrong in (replace(QUICK, include=("a.2.weight",)), replace(QUICK, exclude=("a.2.weight",))):
        with pytest.raises(UsageError, match=r"'a\.2\.weight' matches no tensor; near misses: a\.\d\.weight"):
            fitted(tmp_path, wrong, **weights)
    with pytest.raises(UsageError, match="no weight is left to fit"):
        fitted(tmp_path, replace(QUICK, min_features=100), **weights)


def test_tied_weights_are_fitted_once_and_stay_tied(tmp_path: Path) -> None:
    weight = random(64, 64)
    artifact = fitted(tmp_path, a__weight=weight, b__weight=weight.clone(), c__weight=weight + 1)
    assert [layer.names for layer in artifact.layers] == [("a.weight", "b.weight"), ("c.weight",)]


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
def test_float16_is_stored_only_where_it_does_no_harm(mixer: Mixer, tmp_path: Path) -> None:
    layers = {}
    for store in (FLOAT32, FLOAT16):
        settings = CompressSettings(FitSettings(stages=20, steps=60, mixer=mixer, store=store))
        (layers[store],) = fitted(tmp_path, settings, a__weight=random(128, 128)).layers
    exact, half = layers[FLOAT32], layers[FLOAT16]
    assert half.error <= 1.02 * exact.error + 1e-3
    if mixer is Mixer.ROTATION:  # angles are all of one size: they always fit
        assert half.stored.codecs["0.angles"] == FLOAT16
        assert half.stored_bytes < 0.6 * exact.stored_bytes
    assert (half.stored.codec == FLOAT16) == (half.reason is None)
    assert exact.reason is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    weight = random(64, 64)
    weight[3, 4] = value
    with pytest.raises(
        SourceError, match=r"tensor 'b\.weight' holds 1 NaN or infinite values; .*`exclude` 'b\.weight'"
    ):
        fitted(tmp_path, a__weight=random(64, 64), b__weight=weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_errors_are_those_of_what_is_stored_whatever_the_dtypes(dtype: torch.dtype, tmp_path: Path) -> None:
    weight = random(64, 64).to(dtype)
    for store, size in ((FLOAT32, 4), (FLOAT16, 2)):
        settings = replace(QUICK, fit=replace(QUICK.fit, mixer=Mixer.ROTATION, store=store))
        (layer,) = fitted(tmp_path, settings, a__weight=weight).layers
        arrays = layer.operator.arrays.items()
        scales = sum(array.numel() for name, array in arrays if name.endswith(".scales"))  # they stay float32
        assert layer.stored_bytes == size * (layer.operator.parameter_count - scales) + 4 * scales
        assert layer.stored_bytes == stored_bytes(layer.form, store)
        dense = layer.operator.to(torch.float64).to_dense().numpy()
        exact = weight.double().numpy()
        assert layer.error == pytest.approx(np.linalg.norm(exact - dense) / np.linalg.norm(exact), rel=1e-5)


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        artifact = fitted(tmp_path, a__weight=random(64, 96), b__weight=random(64, 96, seed=1))
        write_artifact(artifact, tmp_path / name)
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]


def test_progress_hears_everything_in_order(tmp_path: Path) -> None:
    heard: list[str] = []

    class Ear:
        def begin(self, layers: int) -> None:
            heard.append(f"begin {layers}")

        def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
            heard.append(f"batch {len(names)} {shape}")

        def step(self, report: StepReport) -> None:
            heard.append("step")

        def layer(self, layer: FittedLayer) -> None:
            heard.append(layer.name)

    save_file({"a.weight": random(64, 64), "b.weight": random(64, 64, seed=1)}, tmp_path / "m.safetensors")
    fit_model(open_source(tmp_path / "m.safetensors"), QUICK, beside=tmp_path, progress=Ear())
    assert heard[:2] == ["begin 2", "batch 2 (64, 64)"]
    assert heard[2] == "step"
    assert heard[-2:] == ["a.weight", "b.weight"]
