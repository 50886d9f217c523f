"""Programs of torch.export in training: what is judged, what is exported, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

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
from spm_compress.checkpoint.imported_program import ImportedProgram
from spm_compress.distill import DistillSettings, Loss, Rates, Recovered, Trained, recover
from spm_compress.errors import ExportError, SourceError, UsageError
from spm_compress.forms.lowering import Blocks

QUICK = DistillSettings(steps=60, batch=16, check_every=10, held_out=0.2, rates=Rates.parse("1e-2"))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = nn.Linear(64, 96), nn.LayerNorm(96), nn.Linear(96, 96)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.first(x)).relu()
        return {"logits": self.head(self.second(x).tanh()) * scale}


def saved(model: nn.Module, path: Path, dynamic: bool = True) -> Source:
    example = {"x": torch.randn(24, 64), "scale": torch.ones(24, 1)}
    batch = {0: torch.export.Dim("batch")}
    axes = {"x": batch, "scale": batch} if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (), example, dynamic_shapes=axes), path)
    return open_source(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    draw = np.random.default_rng(0)
    x = draw.standard_normal((400, 6)) @ draw.standard_normal((6, 64)) / 2  # of few dimensions, as real data
    np.savez(folder / "data.npz", x=x.astype(np.float32), scale=np.full((400, 1), 2, np.float32))
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    return saved(Net(), folder / "model.pt2")


@pytest.fixture(scope="module")
def artifact(source: Source, folder: Path) -> Artifact:
    fit = CompressSettings(FitSettings(stages=6, block=8, steps=50), include=("first*", "second*"))
    return fit_model(source, fit, beside=folder)


@pytest.fixture(scope="module")
def recovered(artifact: Artifact, source: Source, folder: Path) -> Recovered:
    return recover(artifact, source, folder / "data.npz", replace(QUICK, trained=Trained.ALL), beside=folder)


def test_the_recovered_model_agrees_more_with_the_original(recovered: Recovered) -> None:
    assert recovered.distilled.loss == Loss.LOGITS.value
    assert recovered.distilled.after > recovered.distilled.before + 0.1
    assert recovered.frozen == ()
    assert "head.weight" in recovered.artifact.retrained and "norm.weight" in recovered.artifact.retrained


def test_the_exported_file_agrees_with_what_was_judged(
    recovered: Recovered, source: Source, folder: Path, tmp_path: Path
) -> None:
    path, out, dense = (tmp_path / name for name in ("out.spm.safetensors", "out.onnx", "dense.onnx"))
    write_artifact(recovered.artifact, path)
    settings = ExportSettings(Blocks())
    export_onnx(read_artifact(path), out, source=source, settings=settings, dense_path=dense)
    data = {name: array[:64] for name, array in np.load(folder / "data.npz").items()}
    given = {name: torch.from_numpy(array) for name, array in data.items()}
    with torch.no_grad():
        judged, original = (model(**given)["logits"].numpy() for model in (recovered.student, Net().eval()))
    answers = [
        onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]).run(None, data) for each in (out, dense)
    ]
    np.testing.assert_allclose(answers[0][0], judged, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(answers[1][0], original, rtol=1e-3, atol=1e-4)
    assert np.abs(original - judged).max() > 1e-2
    assert torch.equal(source.read("norm.weight"), torch.ones(96)), "an export leaves the source as it was"
    with pytest.raises(ExportError, match=r"trained after its fit.*leave `graph` out"):
        export_onnx(read_artifact(path), tmp_path / "other.onnx", graph=dense)


def test_the_report_advises_to_train_it(artifact: Artifact, folder: Path) -> None:
    write_artifact(artifact, folder / "model.spm.safetensors")
    told = summarize(artifact, folder / "model.spm.safetensors")
    assert artifact.source["live"] and "untrainable" not in artifact.source
    assert "train its SPM layers further before use (distill)" in told.verdict


def test_a_program_of_one_batch_size_trains_in_batches_of_that(folder: Path, tmp_path: Path) -> None:
    source = saved(Net(), tmp_path / "model.pt2", dynamic=False)
    fit = CompressSettings(FitSettings(stages=4, block=8, steps=10), include=("second*",))
    artifact = fit_model(source, fit, beside=tmp_path)
    found = recover(artifact, source, folder / "data.npz", replace(QUICK, steps=20), beside=tmp_path)
    assert isinstance(found.teacher, ImportedProgram) and found.teacher.batch == 24
    assert found.distilled.after > found.distilled.before
    np.savez(tmp_path / "few.npz", x=np.ones((20, 64), np.float32), scale=np.ones((20, 1), np.float32))
    with pytest.raises(UsageError, match=r"few.npz: holds fewer samples than the 24 that the model is made for"):
        recover(artifact, source, tmp_path / "few.npz", QUICK, beside=tmp_path)


def test_a_program_that_cannot_be_trained_is_told_so(folder: Path, tmp_path: Path) -> None:
    class Turned(Net):
        def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": (self.first.weight @ x.mT).mT * scale}

    source = saved(Turned(), tmp_path / "model.pt2")
    artifact = fit_model(source, CompressSettings(FitSettings(stages=2, steps=2), include=("first*",)), beside=tmp_path)
    why = "it does not multiply by a fitted weight in plain products alone"
    assert artifact.source["untrainable"] == why
    write_artifact(artifact, tmp_path / "out.spm.safetensors")
    assert f"distill cannot train it ({why})" in summarize(artifact, tmp_path / "out.spm.safetensors").verdict
    with pytest.raises(SourceError, match=rf"model.pt2: cannot be trained, as {why}"):
        recover(artifact, source, folder / "data.npz", QUICK, beside=tmp_path)


def test_an_import_that_computes_something_else_is_refused(
    artifact: Artifact, source: Source, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = ImportedProgram.forward
    monkeypatch.setattr(
        ImportedProgram, "forward", lambda self, **inputs: {k: 1.001 * y for k, y in right(self, **inputs).items()}
    )
    with pytest.raises(SourceError, match=r"model.pt2: cannot be trained, .* differs from torch.export by 1.0e-03"):
        recover(artifact, source, folder / "data.npz", QUICK, beside=folder)
