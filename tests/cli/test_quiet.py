"""`--quiet`: nothing on stderr but errors, from every command and from what it calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import mistake_folders
import pytest
from running import spm

from spm_compress_cli.main import cli

NOISY = """
import os, sys, warnings

def score(model):
    print("progress", file=sys.stderr)
    warnings.warn("old", DeprecationWarning)
    warnings.warn("careful")
    os.write(2, b"native")
    return 1.0
"""
COMMANDS = {
    "compress": ["bert", "-o", "small.onnx", "--budget", "90%", "--sequence", "4", "--calibration", "texts.txt"],
    "inspect": ["bert", "--probe-steps", "0"],
    "init": ["bert", "--force"],
    "fit": ["bert", "--include", "encoder.*", "--steps", "1", "--calibration", "texts.txt", "--eval", "noisy:score"],
    "distill": ["bert.spm.safetensors", "--calibration", "texts.txt", "--steps", "2", "--batch", "4", "-o", "d"],
    "report": ["bert.spm.safetensors", "--html", "report.html"],
    "diff": ["bert.spm.safetensors", "mlp.spm.safetensors"],
    "expand": ["bert.spm.safetensors"],
    "export": ["mlp.spm.safetensors", "--onnx", "exported.onnx", "--lowering", "dense"],
    "verify": ["out.onnx", "--against", "dense.onnx", "--eval", "noisy:score"],
    "bench": ["out.onnx", "--batch", "1", "--repeats", "3"],
}


@pytest.fixture(scope="module")
def folder(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet")
    mistake_folders.fill(folder, bert, texts)
    (folder / "noisy.py").write_text(NOISY)
    return folder


def test_every_command_is_tried() -> None:
    assert set(COMMANDS) == set(cli.commands)
    for command in cli.commands.values():
        assert {"quiet", "verbose"} <= {parameter.name for parameter in command.params}


@pytest.mark.parametrize("command", COMMANDS)
def test_quiet_leaves_results_on_stdout_and_nothing_on_stderr(command: str, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "here")
    run = spm(command, *COMMANDS[command], "-q", cwd=tmp_path / "here")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout


def test_errors_are_said_all_the_same(folder: Path) -> None:
    run = spm("report", "absent", "-q", cwd=folder)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "error: absent: no such artifact; make one with: spm-compress fit MODEL\n"


def test_verbose_says_what_runs_on_report_diff_and_init_too(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "here")
    for command in ("report", "diff", "init"):
        run = spm(command, *COMMANDS[command], "--verbose", cwd=tmp_path / "here")
        assert run.returncode == 0
        assert run.stderr.startswith("spm-compress ")
