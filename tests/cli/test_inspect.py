"""`inspect` through its real entry point."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from running import spm
from safetensors.torch import load_file, save_file


def inspect(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return spm("inspect", "model.safetensors", *arguments, cwd=folder)


def test_the_tables(mlp_file: Path) -> None:
    done = inspect(mlp_file.parent)
    assert done.returncode == 0, done.stderr
    assert "model.safetensors: 2 dense weights" in done.stdout
    assert "flat spectrum: 3% of the bytes keeps" in " ".join(done.stdout.split())
    assert "closed form" in done.stdout
    assert "narrower than 32 features" in done.stdout
    assert "[0/2] 0.weight 64x96" in done.stderr
    assert [path.name for path in mlp_file.parent.iterdir()] == ["model.safetensors"]


def test_json_and_quiet(mlp_file: Path) -> None:
    done = inspect(mlp_file.parent, "--json", "--quiet", "--include", "2.*", "--probe-steps", "10")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["schema"] == "spm-compress/inspect/1"
    assert [layer["name"] for layer in told["layers"]] == ["2.weight"]
    assert {left["reason"] for left in told["kept"]} >= {"not included", "1-D, not a matrix"}
    (layer,) = told["layers"]
    assert [size["share"] for size in layer["sizes"]] == [0.03, 0.06, 0.12]
    assert 0 < layer["closed_form"]["bound"] <= layer["closed_form"]["error"] <= 1
    assert {probe["name"] for probe in told["probes"]} == {"2.weight"}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--include", "q*"], 2, "--include 'q*' matches no tensor"),
        (["--min-features", "1000"], 2, "no weight to inspect"),
        (["--min-features", "0"], 2, "Invalid value for '--min-features'"),
        ([], 1, "tensor '2.weight' holds 1 NaN or infinite values"),
    ],
)
def test_mistakes_are_one_line(mlp_file: Path, arguments: list[str], code: int, line: str) -> None:
    tensors = load_file(mlp_file)
    tensors["2.weight"][0, 0] = float("nan")
    save_file(tensors, mlp_file)
    done = inspect(mlp_file.parent, "--quiet", *arguments)
    assert done.returncode == code
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and line in done.stderr
    assert torch.isnan(load_file(mlp_file)["2.weight"]).any()


@pytest.mark.slow
def test_all_of_minilm(minilm: Path) -> None:
    done = spm("inspect", str(minilm), "--json", "--quiet", "--probe-steps", "0", cwd=minilm.parent)
    told = json.loads(done.stdout)
    assert len(told["layers"]) == 37
    for layer in told["layers"]:
        first = layer["sizes"][0]
        # `fit --stages 10` reaches 0.94 on the 384x384 weights, and the SVD of that size too (docs/measurements.md).
        assert 0.84 < first["svd_error"] < 0.98
        assert 0.7 < first["bound"] < 0.91
        assert first["bound"] < layer["closed_form"]["error"] < 1
