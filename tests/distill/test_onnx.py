"""ONNX models in training: what `fit` says of them, what is judged, what is exported, what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import trainable_graphs
from running import spm

from spm_compress import (
    CompressSettings,
    ExportSettings,
    FitSettings,
    export_onnx,
    fit_model,
    open_source,
    read_artifact,
    summarize,
    write_artifact,
)
from spm_compress.checkpoint import Artifact, Source
from spm_compress.checkpoint.imported_graph import ImportedGraph, importer
from spm_compress.compress import load_model
from spm_compress.distill import DistillSettings, Loss, Rates, Recovered, Trained, TrainingReport, recover
from spm_compress.errors import ExportError, SourceError, UsageError
from spm_compress.forms.lowering import Blocks

pytest.importorskip("onnx2fx", reason="onnx2fx is for Python 3.11 or later")

QUICK = DistillSettings(steps=60, batch=16, check_every=10, keep_every=5, held_out=0.2, rates=Rates.parse("1e-2"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    trainable_graphs.classifier(folder / "model.onnx")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((400, 6)) @ draw.standard_normal((6, 64)) / 2  # of few dimensions, as real data
    np.savez(folder / "data.npz", x=x.astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return open_source(folder / "model.onnx")


@pytest.fixture(scope="module")
def artifact(source: Source, folder: Path) -> Artifact:
    fit = FitSettings(stages=6, block=8, steps=100)
    return fit_model(source, CompressSettings(fit), beside=folder)


@pytest.fixture(scope="module", params=[Trained.SPM, Trained.ALL], ids=["spm", "all"])
def recovered(artifact: Artifact, source: Source, folder: Path, request: pytest.FixtureRequest) -> Recovered:
    return recover(artifact, source, folder / "data.npz", replace(QUICK, trained=request.param), beside=folder)


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return np.asarray(found)


def test_the_recovered_model_agrees_more_with_the_original(recovered: Recovered, artifact: Artifact) -> None:
    assert recovered.distilled.loss == Loss.LOGITS.value, "the model ends in a Softmax"
    assert recovered.distilled.after > recovered.distilled.before + 0.1
    assert recovered.frozen == ()
    assert {layer.name for layer in artifact.layers} == {"first/weight", "second.weight"}


def test_the_exported_file_agrees_with_what_was_judged(
    recovered: Recovered, source: Source, folder: Path, tmp_path: Path
) -> None:
    x = np.load(folder / "data.npz")["x"][:64]
    with torch.no_grad():
        judged = recovered.student(x=torch.from_numpy(x))["y"].numpy()
    path = tmp_path / "out.spm.safetensors"
    write_artifact(recovered.artifact, path)
    export_onnx(read_artifact(path), tmp_path / "out.onnx", source=source, settings=ExportSettings(Blocks()))
    np.testing.assert_allclose(answers(tmp_path / "out.onnx", x), judged, rtol=1e-3, atol=1e-5)
    original = answers(folder / "model.onnx", x)
    assert np.abs(original - judged).max() > 1e-2
    small = {"first/bias", "norm.weight", "norm.bias", "second.bias"}
    assert set(recovered.artifact.retrained) in (small, {*small, "head"})
    with pytest.raises(ExportError, match=r"trained after its fit.*leave `graph` out"):
        export_onnx(read_artifact(path), tmp_path / "other.onnx", graph=folder / "model.onnx")


def test_an_output_of_any_name_can_be_called_logits(tmp_path: Path) -> None:
    source = open_source(trainable_graphs.with_operator(tmp_path / "model.onnx", "Neg", ""))
    draw = np.random.default_rng(0)
    x = draw.standard_normal((200, 4)) @ draw.standard_normal((4, 32))
    np.savez(tmp_path / "data.npz", x=x.astype(np.float32))
    artifact = fit_model(source, CompressSettings(FitSettings(stages=4, block=8, steps=50)), beside=tmp_path)
    settings = replace(QUICK, loss=Loss.LOGITS)
    found = recover(artifact, source, tmp_path / "data.npz", settings, beside=tmp_path)
    assert found.distilled.after > found.distilled.before


def test_the_report_names_what_imported_the_model(recovered: Recovered, tmp_path: Path) -> None:
    path = tmp_path / "out.spm.safetensors"
    write_artifact(recovered.artifact, path)
    found = summarize(read_artifact(path), path).recovery
    assert found is not None and found.imported_by == importer()
    run = spm("report", path.name, cwd=tmp_path)
    assert f"trained for 60 steps on data.npz, imported by {importer()}: agreement" in " ".join(run.stdout.split())


def test_a_model_of_float16_is_trained_in_float32(folder: Path, tmp_path: Path) -> None:
    source = open_source(trainable_graphs.in_float16(folder / "model.onnx", tmp_path / "half.onnx"))
    artifact = fit_model(source, CompressSettings(FitSettings(stages=6, block=8, steps=50)), beside=tmp_path)
    found = recover(artifact, source, folder / "data.npz", QUICK, beside=tmp_path)
    assert found.distilled.after > found.distilled.before + 0.1
    export_onnx(found.artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(Blocks()))
    x = np.load(folder / "data.npz")["x"][:64]
    with torch.no_grad():
        judged = found.student(x=torch.from_numpy(x))["y"].numpy()
    np.testing.assert_allclose(answers(tmp_path / "out.onnx", x.astype(np.float16)), judged, atol=2e-2)


class _StoppedError(Exception):
    pass


def test_a_resumed_training_ends_with_the_same_bytes(
    artifact: Artifact, source: Source, folder: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"

    def stop(report: TrainingReport) -> None:
        if report.step == 13:
            raise _StoppedError

    def train(**more: object) -> bytes:
        found = recover(artifact, source, folder / "data.npz", replace(QUICK, steps=20), beside=folder, **more)  # type: ignore[arg-type]
        write_artifact(found.artifact, tmp_path / "out")
        return (tmp_path / "out").read_bytes()

    with pytest.raises(_StoppedError):
        train(state=state, watch=stop)
    assert train(state=state) == train()


def test_matrices_that_stay_dense_are_put_back_in_their_own_layout(tmp_path: Path) -> None:
    source = open_source(trainable_graphs.convolutions(tmp_path / "model.onnx"))
    x = np.random.default_rng(0).standard_normal((64, 32, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    fit = CompressSettings(FitSettings(stages=2, block=4, steps=20), include=("point",))
    artifact = fit_model(source, fit, beside=tmp_path)
    settings = replace(QUICK, steps=8, batch=8, trained=Trained.ALL, check_every=2)
    found = recover(artifact, source, tmp_path / "data.npz", settings, beside=tmp_path)
    assert {"twice", "left", "depth", "scale"} <= set(found.artifact.retrained)
    assert not {"mean", "variance", "exponents"} & set(found.artifact.retrained)
    export_onnx(found.artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(Blocks()))
    with torch.no_grad():
        judged = found.student(x=torch.from_numpy(x))["y"].numpy()
    np.testing.assert_allclose(answers(tmp_path / "out.onnx", x), judged, rtol=1e-3, atol=1e-4)


def test_an_import_that_computes_something_else_is_refused(
    artifact: Artifact, source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ImportedGraph.forward
    monkeypatch.setattr(
        ImportedGraph, "forward", lambda self, **inputs: {k: 1.001 * y for k, y in right(self, **inputs).items()}
    )
    with pytest.raises(SourceError, match=r"model.onnx: cannot be trained, .* differs from ONNX Runtime by 1.0e-03"):
        recover(artifact, source, folder / "data.npz", QUICK, beside=folder)


def test_data_of_other_inputs_is_refused(artifact: Artifact, source: Source, folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", z=np.ones((64, 64), np.float32))
    with pytest.raises(UsageError, match=r"no input 'z'.*its inputs: x"):
        recover(artifact, source, tmp_path / "data.npz", QUICK, beside=folder)


def test_what_cannot_be_trained_is_told_before_training_is_advised(tmp_path: Path) -> None:
    trainable_graphs.with_operator(tmp_path / "model.onnx", "QuickGelu")
    np.savez(tmp_path / "data.npz", x=np.ones((64, 32), np.float32))
    fitted = spm("fit", "model.onnx", "--stages", "2", "--steps", "1", cwd=tmp_path)
    why = f"{importer()} has no operator QuickGelu of com.microsoft"
    for said in (fitted, spm("report", "model.spm.safetensors", cwd=tmp_path)):
        assert f"distill cannot train it ({why})" in " ".join(said.stdout.split())
    refused = spm("distill", "model.spm.safetensors", "--calibration", "data.npz", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == f"error: model.onnx: cannot be trained, as {why}\n"


def test_a_weight_in_a_branch_is_told_before_training_is_advised(tmp_path: Path) -> None:
    trainable_graphs.branches(tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=np.ones((64, 32), np.float32))
    fitted = spm("fit", "model.onnx", "--stages", "2", "--steps", "1", cwd=tmp_path)
    assert "distill cannot train it (inside belongs to a branch or loop)" in " ".join(fitted.stdout.split())
    refused = spm("distill", "model.spm.safetensors", "--calibration", "data.npz", cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr == "error: model.onnx: cannot be trained, as inside belongs to a branch or loop\n"


def test_text_recognition_is_trained_and_exported(ppocr: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="lines of text are drawn with Pillow, which comes with matplotlib")
    drawing, fonts = pytest.importorskip("PIL.ImageDraw"), pytest.importorskip("PIL.ImageFont")
    font, lines = fonts.load_default(size=32), []
    for word in json.dumps(sorted(sys.stdlib_module_names))[2:].split('", "')[40:80]:
        line = image.new("RGB", (160, 48), "white")
        drawing.Draw(line).text((4, 4), word, fill="black", font=font)
        lines.append(np.asarray(line, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1)
    np.savez(tmp_path / "lines.npz", x=np.stack(lines))
    source = open_source(ppocr)
    fit = CompressSettings(FitSettings(stages=10, steps=20), include=("linear_*",), exclude=("linear_*9.w_0",))
    artifact = fit_model(source, fit, beside=tmp_path)
    settings = replace(QUICK, steps=6, batch=4, check_every=2, rates=Rates.parse("3e-3"), block_share=0)
    found = recover(artifact, source, tmp_path / "lines.npz", settings, beside=tmp_path)
    assert found.distilled.after > found.distilled.before
    assert load_model(found.artifact, source).members.keys() >= {layer.name for layer in artifact.layers}
    export_onnx(found.artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(Blocks()))
    x = np.stack(lines[:4])
    with torch.no_grad():
        judged = next(iter(found.student(x=torch.from_numpy(x)).values())).numpy()
    np.testing.assert_allclose(answers(tmp_path / "out.onnx", x), judged, rtol=1e-2, atol=1e-4)
