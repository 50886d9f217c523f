"""Fewer bits, and more bytes than one protobuf holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made import mlp
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.codecs import FLOAT16
from spm_compress.errors import VerificationError
from spm_compress.export import Precision, one_file, saving
from spm_compress.export.verification import Agreement
from spm_compress.forms.lowering import Layout, Lowering, lowerings

every_lowering = pytest.mark.parametrize(
    "lowering",
    [pytest.param(each, marks=[pytest.mark.slow] * (each.layout is Layout.BATCH_MAJOR)) for each in lowerings()],
    ids=lambda lowering: lowering.name,
)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """Three layers, of which the first and the last are fitted; canonical numbers span many decades."""
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    torch.manual_seed(0)
    linears = [nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64)]
    save_file(nn.Sequential(*linears).state_dict(), path)
    settings = CompressSettings(FitSettings(stages=10, steps=60), exclude=("2.*",))
    return path, fit_model(open_source(path), settings, beside=path.parent)


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32)
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def exported(
    fitted: tuple[Path, Artifact], folder: Path, lowering: Lowering, precision: Precision = Precision.FLOAT32
) -> Path:
    path, artifact = fitted
    settings = ExportSettings(lowering, precision=precision)
    result = export_onnx(artifact, folder / f"{precision.value}.onnx", source=open_source(path), settings=settings)
    assert sorted(result.spliced.nodes) == ["0.weight", "4.weight"]
    return result.path


@every_lowering
def test_half_precision_is_that_of_the_dense_model(
    fitted: tuple[Path, Artifact], lowering: Lowering, tmp_path: Path
) -> None:
    half = exported(fitted, tmp_path, lowering, Precision.FLOAT16)
    single = exported(fitted, tmp_path, lowering)
    expected = run(single)
    assert np.linalg.norm(run(half) - expected) < 1e-2 * np.linalg.norm(expected)
    types = {each.data_type for each in onnx.load(half).graph.initializer if each.name.startswith("2.")}
    assert types == {onnx.TensorProto.FLOAT16}
    assert half.stat().st_size < single.stat().st_size
    assert run(half).dtype == np.float32, "inputs and outputs stay as they are"


@every_lowering
def test_int8_is_for_the_weights_that_stay_dense(
    fitted: tuple[Path, Artifact], lowering: Lowering, tmp_path: Path
) -> None:
    quantized = exported(fitted, tmp_path, lowering, Precision.INT8)
    expected = run(exported(fitted, tmp_path, lowering))
    error = np.linalg.norm(run(quantized) - expected) / np.linalg.norm(expected)
    assert 1e-5 < error < 0.1
    kinds = [each.op_type for each in onnx.load(quantized).graph.node]
    assert kinds.count("MatMulInteger") + kinds.count("DynamicQuantizeMatMul") == 1


def test_two_gigabytes_go_to_a_file_beside(
    fitted: tuple[Path, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = run(exported(fitted, tmp_path, lowerings()[0]))
    monkeypatch.setattr(saving, "LIMIT", 10_000)
    folder = tmp_path / "first"
    folder.mkdir()
    path = exported(fitted, folder, lowerings()[0])
    (data,) = [file for file in folder.iterdir() if file != path]
    proto = onnx.load(path, load_external_data=False)
    locations = {entry.value for t in proto.graph.initializer for entry in t.external_data if entry.key == "location"}
    assert locations == {data.name}, "relative, beside the model"
    folder.rename(tmp_path / "second")
    assert np.array_equal(run(tmp_path / "second" / path.name), small)


def test_a_failed_export_leaves_the_former_file_and_its_data(
    fitted: tuple[Path, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LIMIT", 10_000)
    exported(fitted, tmp_path, lowerings()[0])
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(one_file, "agreement", lambda batch, *_: Agreement(batch, 1.0))
    with pytest.raises(VerificationError, match="differ by"):
        exported(fitted, tmp_path, lowerings()[1])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_same_export_gives_the_same_bytes(fitted: tuple[Path, Artifact], tmp_path: Path) -> None:
    torch.manual_seed(5)
    first = exported(fitted, tmp_path, lowerings()[2]).read_bytes()
    torch.manual_seed(6)
    assert exported(fitted, tmp_path, lowerings()[2]).read_bytes() == first


def test_a_dense_map_that_is_stored_as_the_graph_has_it_is_no_copy_of_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(mlp(40, 64, 48).state_dict(), path)
    fit = FitSettings(forms=("dense",))
    artifact = fit_model(open_source(path), CompressSettings(replace(fit, store=FLOAT16)), beside=tmp_path)
    for lowering in lowerings():
        settings = ExportSettings(lowering=lowering, precision=Precision.FLOAT16)
        export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=settings)
