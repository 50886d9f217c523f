"""The command line through its real entry point."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime
import pytest
from running import COMMAND, spm
from untraced import unmeasured

from spm_compress_cli.main import main

ROOT = Path(__file__).resolve().parents[2]


def program(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it as a user does, from its first import on."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, env=unmeasured(), capture_output=True, text=True, check=False
    )


def test_the_two_commands_in_the_users_words(mlp_file: Path) -> None:
    fit = program("fit", "model.safetensors", "--stages", "10", cwd=mlp_file.parent)
    assert fit.returncode == 0, fit.stderr
    assert "[2/2] 2.weight 64x64 error" in fit.stderr
    assert "2 weights fitted" in fit.stdout
    assert "will not work without recovery" in " ".join(fit.stdout.split())
    export = program("export", "--onnx", "out.onnx", cwd=mlp_file.parent)
    assert export.returncode == 0, export.stderr
    assert "assuming a chain of linears with relu" in export.stderr
    assert "verified, relative error to the torch operator batch 1:" in export.stdout
    files = {path.name for path in mlp_file.parent.iterdir()}
    assert files == {"model.safetensors", "model.spm.safetensors", "out.onnx"}
    onnxruntime.InferenceSession(mlp_file.parent / "out.onnx", providers=["CPUExecutionProvider"])


def test_json_and_quiet(mlp_file: Path) -> None:
    fit = spm("fit", "model.safetensors", "--steps", "5", "--json", "--quiet", cwd=mlp_file.parent)
    report = spm("report", "--json", cwd=mlp_file.parent)
    assert fit.stderr == report.stderr == ""
    assert json.loads(fit.stdout) == json.loads(report.stdout)
    layers = spm("export", "--layers", "--onnx", "layers", "--json", "--quiet", cwd=mlp_file.parent)
    assert layers.stderr == ""
    assert [Path(file["path"]).name for file in json.loads(layers.stdout)["files"]] == [
        "0.weight.onnx",
        "2.weight.onnx",
    ]


def test_an_interrupted_fit_leaves_no_file_and_says_so_in_one_line(mlp_file: Path) -> None:
    fit = subprocess.Popen(
        [*COMMAND, "fit", "model.safetensors", "--steps", "1000000"],
        cwd=mlp_file.parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not (mlp_file.parent / "model.spm.safetensors.ledger" / "recipe.json").exists():
            assert fit.poll() is None
            time.sleep(0.02)
        fit.send_signal(signal.SIGINT)
        _, stderr = fit.communicate(timeout=60)
    finally:
        fit.kill()  # its steps would take hours
    assert stderr.splitlines()[-1] == "error: interrupted; nothing was written"
    assert "Traceback" not in stderr
    assert fit.returncode == 1
    assert [path.name for path in mlp_file.parent.iterdir()] == ["model.safetensors"]


def test_an_interrupt_inside_an_exec_is_exit_code_1_too(tmp_path: Path) -> None:
    (tmp_path / "interrupted.py").write_text(
        "from spm_compress_cli import main\nmain.cli.main = lambda **_: exec('raise KeyboardInterrupt')\nmain.main()\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stderr) == (1, "error: interrupted; nothing was written\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["fit", "--help"],
        ["export", "--help"],
        ["report", "-h"],
        ["bench", "-h"],
        ["inspect", "-h"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['spm-compress', *{arguments!r}]\n"
        "from spm_compress_cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'onnxscript', 'transformers', 'numpy', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("chosen", [None, "0"])
def test_large_pages_are_asked_for_unless_somebody_chose(monkeypatch: pytest.MonkeyPatch, chosen: str | None) -> None:
    monkeypatch.setattr(sys, "argv", ["spm-compress", "--version"])
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", chosen or "")  # so that it is put back
    if chosen is None:
        monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    with pytest.raises(SystemExit):
        main()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == (chosen or "1")


def test_it_runs_from_the_checkout_without_being_installed() -> None:
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--version"], cwd=ROOT, env=clean, capture_output=True, text=True
    )
    assert done.stdout.startswith("spm-compress, version ")
