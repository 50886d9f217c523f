"""User mistakes: the line that each prints, and its exit code."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from spm_compress_cli.main import main

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden" / "v1.spm.safetensors"


def nothing(folder: Path) -> None:
    pass


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 500)


def whole_numbers(folder: Path) -> None:
    save_file({"0.weight": torch.ones(64, 64, dtype=torch.int32)}, folder / "model.safetensors")


def with_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["2.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def one_artifact(folder: Path) -> None:
    shutil.copy(GOLDEN, folder / "v1.spm.safetensors")


def two_artifacts(folder: Path) -> None:
    one_artifact(folder)
    shutil.copy(GOLDEN, folder / "other.spm.safetensors")


def blocked(folder: Path) -> None:
    (folder / "model.spm.safetensors").mkdir()


Prepare = Callable[[Path], None]


def not_onnx(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"no protobuf")


MISTAKES: list[tuple[str, Prepare, int, str]] = [
    ("fit", nothing, 2, r"there is no model; name a file or folder, or a function with --factory"),
    (
        "fit modle.safetensors",
        nothing,
        1,
        r"modle\.safetensors: no such file or folder; near misses: model\.safetensors",
    ),
    ("fit model.safetensors", empty, 1, r"model\.safetensors: is empty; fetch or save the model again"),
    ("fit model.safetensors", truncated, 1, r"model\.safetensors: is not a whole safetensors file"),
    ("fit model.safetensors", corrupt, 1, r"model\.safetensors: is not a whole safetensors file"),
    ("fit model.safetensors", whole_numbers, 2, r"no weight is left to fit \(0\.weight: I32: whole numbers"),
    ("fit model.safetensors", with_nan, 1, r"tensor '2\.weight' holds 1 NaN or infinite values"),
    ("fit model.safetensors --steps 1", blocked, 1, r"model\.spm\.safetensors: cannot be written"),
    ("fit model.safetensors --steps 1 -o no/where", nothing, 1, r"no/where: cannot be written"),
    ("fit model.safetensors --stages 0", nothing, 2, r"Invalid value for '--stages'"),
    ("fit model.safetensors --stages many", nothing, 2, r"Invalid value for '--stages'"),
    ("fit model.safetensors --stages 4000", nothing, 2, r"no weight is left to fit .*would not get smaller"),
    ("fit model.safetensors --stages auto", nothing, 2, r"--stages auto needs a target: give --budget SHARE"),
    ("fit model.safetensors --stages 5 --budget 0.1", nothing, 2, r"--stages N and a target exclude each other"),
    ("fit model.safetensors --budget 0.1 --max-error 0.3", nothing, 2, r"--budget and --max-error: give one target"),
    ("fit model.safetensors --budget 5", nothing, 2, r"--budget 5\.0: the share of the dense bytes lies between"),
    ("fit model.safetensors --budget 0.001 --steps 1", nothing, 2, r"--budget 0\.001: the smallest sizes together"),
    ("fit model.safetensors --max-error 2", nothing, 2, r"--max-error 2\.0: a relative error lies between 0 and 1"),
    ("fit model.safetensors --low-rank some", nothing, 2, r"Invalid value for '--low-rank'"),
    ("fit model.safetensors --layer stages=3", nothing, 2, r"write it as 'GLOB:stages=20,mixer=rotation'"),
    ("fit model.safetensors --sequential", nothing, 2, r"give them with --calibration"),
    (
        "fit model.safetensors --calibration absent.npz",
        nothing,
        2,
        r"holds weights without a model that can be run on absent\.npz",
    ),
    ("fit model.safetensors --block 12", nothing, 2, r"--block 12: the block width must be a power of two"),
    ("fit model.safetensors --mixer magic", nothing, 2, r"Invalid value for '--mixer'"),
    ("fit model.safetensors --device tpu9", nothing, 2, r"--device tpu9: cannot be used"),
    (
        "fit model.safetensors --include 0.wieght",
        nothing,
        2,
        r"--include '0\.wieght' matches no tensor; near misses: 0\.weight",
    ),
    ("fit model.safetensors --exclude q*", nothing, 2, r"--exclude 'q\*' matches no tensor"),
    ("fit model.safetensors --stagse 3", nothing, 2, r"No such option"),
    ("fits", nothing, 2, r"No such command 'fits'"),
    ("report", nothing, 1, r"holds no \*\.spm\.safetensors; make one with: spm-compress fit MODEL"),
    ("report", two_artifacts, 1, r"holds several artifacts \(other\.spm\.safetensors, v1\.spm\.safetensors\)"),
    ("report model.safetensors", nothing, 1, r"not an spm-compress artifact; run fit on it first"),
    ("report absent", nothing, 1, r"absent: no such artifact"),
    ("export --onnx out.onnx", nothing, 1, r"holds no \*\.spm\.safetensors; make one with: spm-compress fit MODEL"),
    ("export", one_artifact, 2, r"nothing to write; give --onnx out\.onnx, --ort out\.ort or both"),
    ("export --layers --ort out.ort", one_artifact, 2, r"give --onnx FOLDER, and leave --ort out"),
    ("export --ort out.bin", one_artifact, 2, r"out\.bin: ONNX Runtime knows its format by the ending \.ort"),
    ("export --onnx out.onnx", one_artifact, 1, r"model\.safetensors has changed since it was fitted"),
    ("export --onnx out.onnx --source absent", one_artifact, 1, r"absent: the model that was fitted is not there"),
    ("export --onnx out.onnx --graph absent.onnx", one_artifact, 1, r"absent\.onnx: no such ONNX file"),
    (
        "export --onnx out.onnx --graph model.safetensors",
        one_artifact,
        1,
        r"model\.safetensors: is not a readable ONNX",
    ),
    ("export --onnx out.onnx --batch 0", one_artifact, 2, r"'0' is not a list of sizes from 1 on, such as 1,8,64"),
    ("export --onnx out.onnx --batch 1,many", one_artifact, 2, r"'1,many' is not a list of sizes"),
    ("export --onnx out.onnx --lowering fast", one_artifact, 2, r"Invalid value for '--lowering'"),
    (
        "export --onnx out.onnx --quantize int8 --dtype float16",
        one_artifact,
        2,
        r"--quantize int8 and --dtype float16 exclude each other; choose one",
    ),
    (
        "export --onnx out.onnx --provider CPUExecutionProvidr",
        one_artifact,
        2,
        r"--provider CPUExecutionProvidr: this onnxruntime has .*; near misses: CPUExecutionProvider",
    ),
    ("fit model.onnx", not_onnx, 1, r"model\.onnx: is not a readable ONNX model"),
    ("export --onnx out.onnx --activation swoosh", one_artifact, 2, r"Invalid value for '--activation'"),
    ("export --layers --onnx model.safetensors", one_artifact, 1, r"model\.safetensors: cannot be made a folder"),
]


@pytest.mark.parametrize(("arguments", "prepare", "code", "line"), MISTAKES)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: str,
    prepare: Prepare,
    code: int,
    line: str,
    mlp_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(mlp_file.parent)
    before = {path: path.stat().st_mtime_ns for path in mlp_file.parent.iterdir()}
    monkeypatch.chdir(mlp_file.parent)
    monkeypatch.setattr(
        "sys.argv", ["spm-compress", *arguments.split(), *(["--quiet"] if "--onnx" in arguments else [])]
    )
    with pytest.raises(SystemExit) as end:
        main()
    captured = capsys.readouterr()
    errors = [text for text in captured.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1, captured.err
    assert captured.err.splitlines()[-1] == errors[0]
    assert re.search(line, errors[0]), errors[0]
    assert end.value.code == code
    assert captured.out == ""
    assert {path: path.stat().st_mtime_ns for path in mlp_file.parent.iterdir()} == before
