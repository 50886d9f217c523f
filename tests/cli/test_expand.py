"""`spm-compress expand` through its real entry point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from running import spm
from safetensors.torch import load_file, save_file


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


@pytest.mark.parametrize("how", [["--exclude", "*"], ["--max-error", "1e-9"]])
def test_what_was_not_replaced_comes_back_bit_for_bit(tmp_path: Path, how: list[str]) -> None:
    draw = torch.Generator().manual_seed(0)
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    tensors = {f"{dtype}.weight": torch.randn(40, 40, generator=draw).to(dtype) for dtype in dtypes}
    tensors |= {f"{dtype}.packed": torch.randint(0, 9, (40, 8)).to(dtype) for dtype in (torch.uint8, torch.int32)}
    save_file(tensors, tmp_path / "model.safetensors")
    run = spm("fit", "model.safetensors", "--steps", "2", "--quiet", *how, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "No weight was replaced" in run.stdout
    assert spm("expand", cwd=tmp_path).returncode == 0
    dense = load_file(tmp_path / "model.dense.safetensors")
    assert sorted(dense) == sorted(tensors)
    for name, tensor in tensors.items():
        assert dense[name].dtype == tensor.dtype
        assert torch.equal(dense[name].view(torch.uint8), tensor.view(torch.uint8))


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for arguments, words in ((["expand"], "holds no *.spm.safetensors"), (["expand", "absent"], "no such artifact")):
        run = spm(*arguments, cwd=tmp_path)
        assert run.returncode == 1
        (line,) = run.stderr.splitlines()
        assert words in line
