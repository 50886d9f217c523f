"""Files of few bits on the oldest ONNX Runtime that is promised, in an environment that has nothing else.

Run by `make test-runtimes`, which names that environment's Python in OLDEST_PYTHON.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from made import token_graph
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.codecs import parse_bits
from spm_compress.export.verification import session
from spm_compress.forms.lowering import Blocks, Dense, Int8, Lowering, Stages

OTHER = """
import sys, numpy, onnxruntime
assert onnxruntime.__version__ == sys.argv[1], onnxruntime.__version__
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[4], session.run(None, {"ids": numpy.load(sys.argv[3])})[0])
"""
OLDEST = "1.22.1"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(500, 64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(self.embed(ids))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return token_graph(Model(), tmp_path_factory.mktemp("graph") / "dense.onnx")


@pytest.mark.parametrize("bits", ["8", "5", "4", "4/32", "3", "2", "1.6", "1"])
@pytest.mark.parametrize("lowering", [Dense(), Int8(), Stages(), Blocks()], ids=lambda each: each.name)
def test_the_oldest_runtime_answers_the_same(bits: str, lowering: Lowering, graph: Path, tmp_path: Path) -> None:
    codec, source = parse_bits(bits), open_source(graph)
    if isinstance(lowering, Stages | Blocks):  # of stages, whose angles take four bits or more
        if bits not in ("8", "5", "4"):
            return
        settings = CompressSettings(FitSettings(stages=8, steps=5, store=codec), table=codec)
    else:
        settings = CompressSettings(FitSettings(), include=("none",), dense=codec, table=codec)
    path = tmp_path / "out.onnx"
    artifact = fit_model(source, settings, beside=tmp_path)
    export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=lowering))
    np.save(tmp_path / "ids.npy", np.arange(12).reshape(3, 4) * 40)
    command = [os.environ["OLDEST_PYTHON"], "-c", OTHER, OLDEST, path, tmp_path / "ids.npy", tmp_path / "found.npy"]
    subprocess.run(command, check=True, timeout=120)
    (expected,) = session(path).run(None, {"ids": np.load(tmp_path / "ids.npy")})
    found = np.load(tmp_path / "found.npy")
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
