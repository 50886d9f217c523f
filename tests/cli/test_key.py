"""`--key`: which model of a torch file that holds several, from `inspect` to `export`."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from running import spm
from torch import nn

from spm_compress import read_artifact


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48)).eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.save({"step": 10, "net": net(0).state_dict()}, tmp_path / "one.pt")
    torch.save({"generator": net(0).state_dict(), "ema": [net(1).state_dict()]}, tmp_path / "two.pth.tar")
    return tmp_path


def test_what_was_taken_is_said_unless_quiet(folder: Path) -> None:
    said = "one.pt: the model in it stands under 'net'; the rest is left out (--key)"
    for command in (("fit", "--steps", "1"), ("inspect", "--probe-steps", "0"), ("init",)):
        run = spm(command[0], "one.pt", *command[1:], cwd=folder)
        assert run.returncode == 0, run.stderr
        assert run.stderr.splitlines()[0] == said
    run = spm("inspect", "one.pt", "--probe-steps", "0", "--quiet", cwd=folder)
    assert (run.returncode, run.stderr) == (0, "")
    run = spm("inspect", "one.pt", "--probe-steps", "0", "--key", "net", cwd=folder)
    assert "stands under" not in run.stderr


def test_several_are_wrong_usage_without_a_key(folder: Path) -> None:
    for command in ("fit", "inspect", "init"):
        run = spm(command, "two.pth.tar", cwd=folder)
        assert run.returncode == 2
        assert run.stderr.splitlines() == [
            "error: two.pth.tar: holds several models: generator (4 tensors), ema.0 (4 tensors); "
            "choose one with --key NAME"
        ]
    run = spm("fit", "two.pth.tar", "--key", "ema", cwd=folder)
    assert run.returncode == 2
    assert run.stderr.splitlines() == ["error: two.pth.tar: holds no model under --key ema; near misses: ema.0"]


def test_the_key_goes_with_the_artifact(folder: Path) -> None:
    run = spm("fit", "two.pth.tar", "--key", "ema.0", "--steps", "2", "--quiet", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert read_artifact(folder / "two.spm.safetensors").source["key"] == "ema.0"
    run = spm("export", "--onnx", "out.onnx", "--dense", "dense.onnx", "--lowering", "dense", "--quiet", cwd=folder)
    assert run.returncode == 0, run.stderr
    session = onnxruntime.InferenceSession(folder / "dense.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 64)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(1)(x).detach(), atol=1e-5, rtol=1e-5)
    again = spm("fit", "--from", "two.spm.safetensors", "-o", "again.spm.safetensors", "--quiet", cwd=folder)
    assert again.returncode == 0, again.stderr
    first, second = (read_artifact(folder / f"{name}.spm.safetensors") for name in ("two", "again"))
    assert [layer.sha256 for layer in first.layers] == [layer.sha256 for layer in second.layers]


def test_a_configuration_keeps_the_key(folder: Path) -> None:
    assert spm("init", "two.pth.tar", "--key", "generator", cwd=folder).returncode == 0
    assert '\nkey = "generator"\n' in (folder / "spm.toml").read_text()
    run = spm("fit", "--config", "spm.toml", "--steps", "1", "--quiet", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert read_artifact(folder / "two.spm.safetensors").source["key"] == "generator"
