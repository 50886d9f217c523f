"""A whole model before any fit: which weights, their figures, their verdicts, and bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from spm_compress import FitSettings, fit_matrices, open_source
from spm_compress.codecs import FLOAT32
from spm_compress.compress import Inspection, fit_model, inspect_model
from spm_compress.compress.inspection import LayerInspection
from spm_compress.compress.model import CompressSettings
from spm_compress.errors import SourceError, UsageError
from spm_compress.forms import Operator
from spm_compress.forms.form import stored_bytes
from spm_compress.forms.spm import Schedule, build_spm
from spm_compress.report import inspection_json


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inspected(folder: Path, tensors: dict[str, torch.Tensor], **options: object) -> Inspection:
    path = folder / "model.safetensors"
    save_file(tensors, path)
    return inspect_model(open_source(path), **{"probe_steps": 0, **options})  # type: ignore[arg-type]


def layer_of(folder: Path, weight: torch.Tensor) -> LayerInspection:
    (layer,) = inspected(folder, {"w": weight}).layers
    return layer


def test_it_takes_what_fit_takes_and_names_the_others_with_fits_reasons(tmp_path: Path) -> None:
    tensors = {
        "fc.weight": random(64, 64),
        "wide.weight": random(96, 64),
        "fc.bias": random(64),
        "wpe.weight": random(100, 64),
        "head.weight": random(10, 64),
        "small.weight": random(33, 32),
    }
    inspection = inspected(tmp_path, tensors, exclude=("small.*",))
    settings = CompressSettings(FitSettings(stages=2, steps=1), exclude=("small.*",))
    artifact = fit_model(open_source(tmp_path / "model.safetensors"), settings, beside=tmp_path)
    assert [layer.name for layer in inspection.layers] == [layer.name for layer in artifact.layers]
    assert {(left.name, left.reason) for left in inspection.kept} == {(k.name, k.reason) for k in artifact.kept}


def test_figures_are_those_of_numpy_and_of_the_forms_that_fit_stores(tmp_path: Path) -> None:
    weight = random(160, 128)
    layer = layer_of(tmp_path, weight)
    s = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    assert layer.energy_10 == pytest.approx((s[:13] ** 2).sum() / (s**2).sum(), rel=1e-9)
    assert layer.decay == pytest.approx(s[0] / s[64], rel=1e-6)
    assert layer.rank == 128
    assert [size.bytes for size in layer.sizes] == [int(share * 4 * 160 * 128) for share in (0.03, 0.06, 0.12)]
    for size in layer.sizes:
        low, high = (math.floor(size.bytes / 4 / 288) + more for more in (0, 1))
        errors = [math.sqrt((s[rank:] ** 2).sum() / (s**2).sum()) for rank in (low, high)]
        assert errors[1] <= size.svd_error <= errors[0]
        if size.stages is None:
            continue
        stored = [
            stored_bytes(FitSettings(stages=stages).reference(160, 128).stored(FLOAT32), FLOAT32)
            for stages in (size.stages, size.stages + 1)
        ]
        assert stored[0] == size.stored_bytes <= size.bytes < stored[1]


def test_a_size_below_one_stage_has_no_chain(tmp_path: Path) -> None:
    assert [size.stages for size in layer_of(tmp_path, random(32, 32)).sizes] == [None, None, 2]


def test_half_precision_counts_float32_numbers_in_its_own_bytes(tmp_path: Path) -> None:
    half = layer_of(tmp_path, random(128, 128).half())
    full = layer_of(tmp_path, random(128, 128))
    assert half.bytes * 2 == full.bytes
    assert half.sizes[1].stages == full.sizes[0].stages
    assert half.sizes[1].svd_error == pytest.approx(full.sizes[0].svd_error, abs=1e-3)


def test_no_fit_goes_below_what_inspect_says(tmp_path: Path) -> None:
    weight = random(128, 128)
    for size in layer_of(tmp_path, weight).sizes:
        assert size.stages is not None and size.bound is not None
        (result,) = fit_matrices(weight[None], FitSettings(stages=size.stages, steps=60))
        assert size.bound <= result.error


def test_verdicts(tmp_path: Path) -> None:
    form = build_spm(64, 64, stages=6, schedule=Schedule.BUTTERFLY)
    draw = torch.Generator().manual_seed(0)
    arrays = {name: torch.randn(shape, generator=draw) for name, shape in form.shapes.items()}
    u, _, vt = torch.linalg.svd(random(64, 64))
    said = {
        "zero": (torch.zeros(64, 64), "all zeros: nothing to keep"),
        "tiny": (random(64, 64) * 1e-12, "near zero: the root mean square of its entries is 9.9e-13"),
        "one": (random(64, 1) @ random(1, 64), "already low rank: rank 1 holds everything, in 3.12% of the numbers"),
        "constant": (torch.full((64, 64), 0.3), "already low rank: rank 1 holds everything, in 3.12% of the numbers"),
        "chain": (Operator(form, arrays).to_dense(), "a butterfly of 6 stages holds everything, in 10.94%"),
        "fast": (u @ torch.diag(0.5 ** torch.arange(64.0).div(2)) @ vt, "spectrum decays fast: a truncated SVD"),
        "flat": (random(64, 64), "flat spectrum: 3% of the bytes keeps"),
    }
    inspection = inspected(tmp_path, {name: weight.contiguous() for name, (weight, _) in said.items()}, probe_steps=4)
    for layer in inspection.layers:
        assert layer.verdict.startswith(said[layer.name][1]), layer.verdict
        figures = [layer.effective_rank, layer.energy_1, layer.root_mean_square]
        assert all(math.isfinite(figure) for figure in figures)
    json.loads(json.dumps(inspection_json(inspection), allow_nan=False))


def test_a_probe_is_the_fit_it_names(tmp_path: Path) -> None:
    tensors = {f"{k}.weight": random(128, 128, seed=k) for k in range(3)}
    inspection = inspected(tmp_path, tensors, probe_steps=20)
    ranks = sorted((layer.effective_rank, layer.name) for layer in inspection.layers)
    assert {probe.name for probe in inspection.probes} == {ranks[1][1]}
    for probe in inspection.probes:
        assert probe.layers == 3
        if probe.error is None:
            assert probe.stages > 8
            assert probe.reason == f"20 steps are too few for {probe.stages} stages"
            continue
        settings = FitSettings(stages=probe.stages, steps=20)
        (result,) = fit_matrices(tensors[probe.name][None], settings)
        assert probe.error == pytest.approx(result.error, rel=1e-6)
        assert probe.stored_bytes == 4 * result.operator.parameter_count
    assert any(probe.error is not None for probe in inspection.probes)


def test_nan_and_an_empty_selection_are_one_line_each(tmp_path: Path) -> None:
    bad = random(64, 64)
    bad[0, 0] = math.nan
    with pytest.raises(SourceError, match=r"tensor 'w' holds 1 NaN or infinite values.*`exclude` 'w'"):
        inspected(tmp_path, {"w": bad})
    with pytest.raises(UsageError, match=r"no weight to inspect \(bias: 1-D, not a matrix"):
        inspected(tmp_path, {"bias": random(64)})


def test_one_feature_is_enough(tmp_path: Path) -> None:
    for m, n in ((1, 1), (1, 40), (40, 1), (2, 3)):
        (layer,) = inspected(tmp_path, {"w": random(m, n)}, min_features=1, probe_steps=4).layers
        assert layer.closed_form is not None and layer.closed_form.bound <= layer.closed_form.error + 1e-6
