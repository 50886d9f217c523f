"""Layer after layer, on what the layers before really give."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.errors import SpmError, UsageError

SETTINGS = CompressSettings(FitSettings(stages=6, block=8, steps=100))
DRAW = np.random.default_rng(0)
WEIGHTS = [DRAW.standard_normal((48, 48)).astype(np.float32) / 7 for _ in range(3)]
X = (DRAW.standard_normal((400, 48)) * np.linspace(2, 0.1, 48) + 0.5).astype(np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    nodes, value = [], "x"
    for i in range(3):
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [f"h{i}"]))
        nodes.append(helper.make_node("Tanh", [f"h{i}"], [f"t{i}"]))
        value = f"t{i}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 48])],
        [helper.make_tensor_value_info("t2", TensorProto.FLOAT, ["n", 48])],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(WEIGHTS)],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    np.savez(tmp_path / "data.npz", x=X)
    return path


def fitted(model: Path, settings: CompressSettings) -> Artifact:
    return fit_model(open_source(model), settings, beside=model.parent, data=model.parent / "data.npz")


def output_of(artifact: Artifact | None) -> np.ndarray:
    x = X
    layers = {layer.name: layer for layer in artifact.layers} if artifact else {}
    for i, weight in enumerate(WEIGHTS):
        layer = layers.get(f"w{i}")
        if layer is None:
            x = np.tanh(x @ weight)
        else:
            assert layer.bias_correction is not None
            x = np.tanh(x @ layer.operator.to_dense().numpy().T + layer.bias_correction.numpy())
    return x


def test_each_step_brings_the_models_output_nearer(model: Path) -> None:
    exact = output_of(None)
    plain = fit_model(open_source(model), SETTINGS, beside=model.parent)
    plain = replace(plain, layers=tuple(replace(layer, bias_correction=torch.zeros(48)) for layer in plain.layers))
    errors = [
        float(np.linalg.norm(output_of(each) - exact) / np.linalg.norm(exact))
        for each in (plain, fitted(model, SETTINGS), fitted(model, replace(SETTINGS, is_sequential=True)))
    ]
    assert errors == sorted(errors, reverse=True), errors
    assert errors[2] < 0.98 * errors[1] < 0.98 * errors[0]


def test_output_errors_are_against_the_original_models_outputs(model: Path) -> None:
    artifact = fitted(model, replace(SETTINGS, is_sequential=True))
    first = now = X.astype(np.float64)
    for layer, weight in zip(sorted(artifact.layers, key=lambda each: each.name), WEIGHTS, strict=True):
        assert (
            layer.bias_correction is not None and layer.output_error is not None and layer.svd_output_error is not None
        )
        matrix = layer.operator.to_dense().double().numpy()
        exact, found = first @ weight, now @ matrix.T + layer.bias_correction.numpy()
        expected = np.linalg.norm(found - exact) / np.linalg.norm(exact - exact.mean(0))
        assert layer.output_error == pytest.approx(expected, rel=2e-4)  # moments are summed in float32
        # What no matrix can correct is part of the SVD's error too.
        centred = now - now.mean(0)
        best = np.linalg.lstsq(centred, exact - exact.mean(0), rcond=None)[0]
        floor = np.linalg.norm(centred @ best - (exact - exact.mean(0))) / np.linalg.norm(exact - exact.mean(0))
        assert 0.999 * floor < layer.svd_output_error < 1
        assert layer.error == pytest.approx(np.linalg.norm(matrix - weight.T) / np.linalg.norm(weight), rel=1e-4)
        first, now = np.tanh(exact), np.tanh(found)


def test_the_mean_output_of_a_calibrated_layer_is_kept(model: Path) -> None:
    (first,) = [layer for layer in fitted(model, SETTINGS).layers if layer.name == "w0"]
    assert first.bias_correction is not None
    now = X @ first.operator.to_dense().numpy().T + first.bias_correction.numpy()
    np.testing.assert_allclose(now.mean(0), (X @ WEIGHTS[0]).mean(0), atol=1e-4)
    assert first.output_error is not None
    assert first.svd_output_error is not None


def test_sequential_needs_data_and_a_fixed_size(model: Path) -> None:
    with pytest.raises(UsageError, match="give them with `data`"):
        fit_model(open_source(model), replace(SETTINGS, is_sequential=True), beside=model.parent)
    with pytest.raises(UsageError, match="`is_sequential`: sizes are planned for all layers at once"):
        replace(SETTINGS, is_sequential=True, budget=0.1)
    with pytest.raises(SpmError, match="no such calibration file"):
        fit_model(open_source(model), SETTINGS, beside=model.parent, data=model.parent / "absent.npz")
