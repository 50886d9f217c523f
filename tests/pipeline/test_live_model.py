"""A module is compressed in place, trained on, saved, loaded and exported: all of them compute the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from made import Attention, gaussian, mlp
from torch import Tensor, nn
from torch.nn.utils import prune

from spm_compress import (
    CompressSettings,
    ExportSettings,
    FitSettings,
    SPMLinear,
    apply_artifact,
    compress_model,
    expand,
    read_artifact,
    summarize,
)
from spm_compress.checkpoint.entries import layer_tensors
from spm_compress.codecs import FLOAT16
from spm_compress.errors import ExportError
from spm_compress.forms.lowering import Blocks

QUICK = FitSettings(stages=4, block=8, steps=5)
EXPORT = ExportSettings(Blocks())


BUILD: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (lambda: mlp(64, 96, 48), gaussian(3, 64)),
    "attention": (Attention, gaussian(3, 5, 64)),
}


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("name", BUILD)
def test_it_is_saved_loaded_and_exported_as_it_is_now(name: str, is_trained: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, x = BUILD[name]
    model = build().eval()
    fresh = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    result = compress_model(model, settings=QUICK)
    assert all(isinstance(model.get_submodule(layer), SPMLinear) for layer in result.replaced)
    with torch.no_grad():
        fitted = model(x).numpy()
    if is_trained:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
    with torch.no_grad():
        expected = model(x).numpy()
    result.save(tmp_path / "m.spm.safetensors")
    artifact = read_artifact(tmp_path / "m.spm.safetensors")
    again = build().eval()
    again.load_state_dict(fresh)
    apply_artifact(again, artifact)
    dense = build().eval()
    dense.load_state_dict(expand(artifact).tensors)
    exported = result.export_onnx(tmp_path / "m.onnx", x, EXPORT)
    assert exported.live is not None and exported.spliced.missing == ()
    runtime = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        for answer in (again(x).numpy(), dense(x).numpy(), found):
            np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)
    errors = {layer.name.removesuffix(".weight"): layer.error for layer in artifact.layers}
    if is_trained:
        assert np.linalg.norm(expected - fitted) > 0.01 * np.linalg.norm(fitted)
    else:
        assert errors == pytest.approx(result.replaced, rel=1e-4)
    assert summarize(artifact, tmp_path / "m.spm.safetensors").fitted_bytes.after > 0


def test_what_is_no_linear_layer_stays_with_that_reason() -> None:
    result = compress_model(Attention(), settings=QUICK)
    reasons = {kept.name: kept.reason for kept in result.fitted.kept}
    assert reasons["a.in_proj_weight"] == "not the weight of a linear layer"
    assert set(result.replaced) == {"a.out_proj", "f"}
    assert result.kept == {}


def test_settings_of_a_file_are_settings_of_a_module(tmp_path: Path) -> None:
    model = mlp(64, 64, 64)
    result = compress_model(model, settings=CompressSettings(replace(QUICK, store=FLOAT16), exclude=("2",)))
    assert result.kept == {"2": "excluded"}
    (layer,) = result.artifact().layers
    assert {codec for name, codec in layer.stored.codecs.items() if not name.endswith(".scales")} == {FLOAT16}
    assert {each.dtype for name, each in layer_tensors(layer).items() if "off_diagonal" in name} == {torch.float16}


def test_without_example_inputs_it_is_not_exported(tmp_path: Path) -> None:
    result = compress_model(mlp(64, 64), settings=QUICK)
    with pytest.raises(ExportError, match="Sequential: there are no example inputs to export with"):
        result.export_onnx(tmp_path / "m.onnx")


def test_a_pruned_module_is_compressed_but_for_what_is_computed() -> None:
    model = mlp(64, 64, 64, 64)
    prune.l1_unstructured(model[2], "weight", 0.5)
    result = compress_model(model, settings=QUICK)
    assert set(result.replaced) == {"0", "4"}
    assert model(gaussian(2, 64)).shape == (2, 64)
