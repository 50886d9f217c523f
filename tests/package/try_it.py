"""Use the installed package as its first user would: in an empty folder, away from the checkout (`make package`)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, version
from pathlib import Path

import onnxruntime
import torch
from safetensors.torch import save_file
from torch import nn

import spm_compress
import spm_compress_cli

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> None:
    packages = [Path(str(module.__file__)).parent for module in (spm_compress, spm_compress_cli)]
    for package in packages:
        assert CHECKOUT not in package.parents or ".venv-package" in package.parts, package
        assert (package / "py.typed").is_file(), f"{package}: is not typed"
    assert version("spm-compress") == spm_compress.__version__
    files = [str(each) for each in distribution("spm-compress").files or ()]
    assert not [each for each in files if each.startswith(("tests", "examples", "benchmarks", "docs", "cli/"))], files
    assert any(each.endswith("page.html.j2") for each in files)
    program = shutil.which("spm-compress", path=str(Path(sys.executable).parent))
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64))
        save_file(model.state_dict(), Path(folder) / "model.safetensors")
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

        def run(*arguments: str) -> str:
            command = [program, *arguments]
            return subprocess.run(command, cwd=folder, env=clean, check=True, stdout=subprocess.PIPE, text=True).stdout

        run("fit", "model.safetensors", "--stages", "10", "--effort", "fast", "--quiet")
        run("export", "--onnx", "out.onnx", "--quiet")
        report = json.loads(run("report", "--json", "--html", "report.html"))
        assert report["schema"].startswith("spm-compress/report/")
        assert "<svg" in (Path(folder) / "report.html").read_text(encoding="utf-8")
        session = onnxruntime.InferenceSession(Path(folder) / "out.onnx", providers=["CPUExecutionProvider"])
        assert session.run(None, {session.get_inputs()[0].name: torch.randn(3, 96).numpy()})[0].shape == (3, 64)
    print(f"spm-compress {spm_compress.__version__} runs from {packages[0].parent}")


if __name__ == "__main__":
    main()
