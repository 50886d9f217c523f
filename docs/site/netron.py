"""Draw docs/netron.png: an export as the graph viewer Netron shows it.

pip install 'spm-compress' netron, npm ci in examples/browser, a Chromium (CHROMIUM names it); then
python docs/site/netron.py
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
PUPPETEER = "examples/browser/node_modules/puppeteer-core/lib/esm/puppeteer/puppeteer-core.js"
MODEL = """
from collections import OrderedDict

import torch
from torch import nn


def build():
    torch.manual_seed(0)
    layers = OrderedDict(
        widen=nn.Linear(256, 512), act1=nn.ReLU(), mix=nn.Linear(512, 512), act2=nn.ReLU(), narrow=nn.Linear(512, 128)
    )
    return nn.Sequential(layers).eval(), {"input": torch.zeros(2, 256)}
"""


def exported(folder: Path) -> Path:
    """Fit and export a model of three layers in a folder; return the ONNX file."""
    (folder / "model.py").write_text(MODEL)
    factory = ["--factory", "model:build", "--quiet"]
    for arguments in (
        ["fit", *factory, "--effort", "fast", "-o", "model.spm.safetensors"],
        ["export", *factory, "--onnx", "model.onnx", "--lowering", "blocks"],
    ):
        command = [sys.executable, "-m", "spm_compress_cli", *arguments]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "model.onnx"


def main() -> None:
    """Serve the file on a free port of this machine, and take the picture."""
    chromium = shutil.which(os.environ.get("CHROMIUM", "chromium"))
    assert chromium is not None, "no Chromium here; name it in CHROMIUM"
    with socket.socket() as free, tempfile.TemporaryDirectory() as name:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        netron = os.environ.get("NETRON", "netron")
        server = subprocess.Popen([netron, str(exported(Path(name))), "--port", str(port), "--verbosity", "quiet"])
        try:
            for _ in range(100):
                with socket.socket() as trial:
                    if trial.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            script = [Path(__file__).with_suffix(".mjs"), chromium, DOCS.parent / PUPPETEER]
            url, picture = f"http://127.0.0.1:{port}/", DOCS / "netron.png"
            subprocess.run(["node", *script, url, "mix", picture], check=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
