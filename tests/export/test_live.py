"""An exported file is compared with the torch module, not with its own graph alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.compress.module import apply_artifact
from spm_compress.errors import VerificationError
from spm_compress.export import ExportSettings, files
from spm_compress.forms.lowering import Blocks

SETTINGS = ExportSettings(lowering=Blocks())


def test_a_module_that_answers_otherwise_than_its_graph_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    save_file(nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48)).state_dict(), tmp_path / "m.safetensors")
    source = open_source(tmp_path / "m.safetensors")
    artifact = fit_model(source, CompressSettings(FitSettings(stages=4, steps=5)), beside=tmp_path)
    exported = export_onnx(artifact, tmp_path / "right.onnx", source=source, settings=SETTINGS)
    assert exported.live is not None
    assert exported.live.error < 1e-5

    def other(model: nn.Module, artifact: Artifact) -> None:
        apply_artifact(model, artifact)
        with torch.no_grad():
            for each in model.parameters():
                each.mul_(1.001)  # an error of 0.1 % is one

    monkeypatch.setattr(files, "apply_artifact", other)
    with pytest.raises(VerificationError, match="the torch module"):
        export_onnx(artifact, tmp_path / "wrong.onnx", source=source, settings=SETTINGS)
    assert not (tmp_path / "wrong.onnx").exists()
