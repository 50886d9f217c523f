"""`spm-compress expand` through its real entry point."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from test_commands import spm


def test_a_fitted_file_is_expanded(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {"0.weight": torch.randn(64, 48, generator=draw), "0.bias": torch.randn(64, generator=draw)}
    save_file(tensors, tmp_path / "model.safetensors")
    assert spm("fit", "model.safetensors", "--stages", "4", "--steps", "5", "--quiet", cwd=tmp_path).returncode == 0
    run = spm("expand", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout)
    assert told["path"] == "model.dense.safetensors"
    assert told["tensors"] == 2
    dense = load_file(tmp_path / "model.dense.safetensors")
    assert torch.equal(dense["0.bias"], tensors["0.bias"])
    assert dense["0.weight"].shape == (64, 48)
    assert "2 tensors" in spm("expand", "-o", "x.safetensors", cwd=tmp_path).stdout


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, words in ((["expand"], "holds no *.spm.safetensors"), (["expand", "absent"], "no such artifact")):
        run = spm(*arguments, cwd=tmp_path)
        assert run.returncode == 1
        (line,) = run.stderr.splitlines()
        assert words in line
