"""Tensors and files whose names are empty, too long, no Unicode, or hold what no file's name can."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from running import spm

from spm_compress import read_artifact

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NAMES = [
    "",
    "/",
    "a/b.weight",
    "a_b.weight",
    "A_B.weight",
    "x" * 300,
    "nul\0x",
    "..",
    "esc\x1b[2J\n[fit]",
    "漢",
    "$x_{$",
]
FORBIDDEN = ["__metadata__", "\udc80", "\ud800"]  # by safetensors, which a checkpoint of torch does not have to be


def fitted(folder: Path, names: list[str]) -> None:
    torch.manual_seed(0)
    torch.save({**{name: torch.randn(64, 64) for name in names}, "kept\x7f": torch.ones(3)}, folder / "m.pt")
    run = spm("fit", "m.pt", "--steps", "1", "--stages", "2", "-q", cwd=folder)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize(
    "names", [pytest.param(NAMES, id="allowed", marks=pytest.mark.slow), pytest.param([*NAMES, *FORBIDDEN], id="all")]
)
def test_every_command_takes_weights_of_any_name(tmp_path: Path, names: list[str]) -> None:
    fitted(tmp_path, names)
    assert {layer.name for layer in read_artifact(tmp_path / "m.spm.safetensors").layers} == set(names)
    for arguments in (["report", "--html", "page.html"], ["inspect", "m.pt", "--probe-steps", "0"], ["init", "m.pt"]):
        assert spm(*arguments, cwd=tmp_path).returncode == 0, arguments
    tables = tomllib.loads((tmp_path / "spm.toml").read_text(encoding="utf-8"))
    assert tables["fit"] == {"model": "m.pt"}
    layers = spm("export", "--layers", "--onnx", "layers", "--lowering", "stages", cwd=tmp_path)
    assert layers.returncode == 0, layers.stderr
    written = {path.name for path in (tmp_path / "layers").iterdir()}
    assert len({name.casefold() for name in written}) == len(names)
    assert {"A_B.weight.onnx", "漢.onnx"} <= written  # and a_b.weight, which comes later, has a number
    expanded = spm("expand", cwd=tmp_path)
    assert expanded.returncode == (1 if names != NAMES else 0)
    assert not expanded.stderr or "cannot have a tensor of this name" in expanded.stderr


def test_a_path_that_is_no_unicode_is_one_line(tmp_path: Path) -> None:
    fitted(tmp_path, ["0.weight"])
    (tmp_path / "m\udcff.pt").write_bytes((tmp_path / "m.pt").read_bytes())
    for arguments in (["fit", "m.pt", "-o", "m\udcff"], ["init", "m\udcff.pt"], ["report", "m\udcff"]):
        run = spm(*arguments, cwd=tmp_path)
        assert run.returncode in (1, 2)
        assert run.stderr.startswith("error: ") and len(run.stderr.splitlines()) == 1
        assert r"m\udcff" in run.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"m.pt", "m\udcff.pt", "m.spm.safetensors"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "m.pt", "-o", ""],
        ["report", "--html", ""],
        ["export", "--onnx", ""],
        ["expand", "-o", "absent/"],
        ["export", "--onnx", "absent/"],
        ["report", "x" * 300],
        ["fit", "x" * 300],
        ["bench", "x" * 300],
    ],
)
def test_a_name_that_no_file_has_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    torch.save({"0.weight": torch.ones(64, 64)}, tmp_path / "m.pt")
    run = spm(*arguments, cwd=tmp_path)
    assert run.returncode in (1, 2)
    assert run.stderr.startswith("error: ") and len(run.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]


def test_a_name_that_leads_in_a_circle_is_one_line(tmp_path: Path) -> None:
    fitted(tmp_path, ["0.weight"])
    (tmp_path / "circle").symlink_to("circle")
    run = spm("expand", "-o", "circle", cwd=tmp_path)
    assert "Traceback" not in run.stderr
    assert run.returncode in (0, 1, 2)
