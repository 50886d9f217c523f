"""Files of few bits answer what torch does on the runtimes that they are promised to run on.

Run by `make test-runtimes`, which names the other environments' Pythons. The files are written here once, and each
runtime is started once for all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import MODULES, find_chromium
from environments import CPU, OPENVINO, Ran, python_of, relative_error, run_models
from made import token_graph
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.codecs import Grid, parse_bits
from spm_compress.export import ort_format
from spm_compress.forms.lowering import Blocks, Dense, Int8, Stages

BITS = ["8", "7", "6", "5", "4", "3", "2", "1.6", "1", "4/32", "3/64"]
# Angles of stages take four bits or more.
CASES = {
    f"{bits.replace('/', ' in blocks of ')}, {way}": (bits, lowering)
    for bits in BITS
    for way, lowering in {"dense": Dense(), "int8": Int8(), "stages": Stages(), "blocks": Blocks()}.items()
    if way in ("dense", "int8") or bits in ("8", "7", "6", "5", "4")
}
OLDEST = "1.22.1"
IDS = np.arange(12).reshape(3, 4) * 40

# Float32 sums in another order: at most 3e-7 is seen.
TOLERANCE = 1e-5
# Activations of 8 bits, and maps of 7 where there were more or blocks: at most 1.4e-2 is seen.
ROUNDED = 2e-2
# OpenVINO has kernels of its own, which round some activations to the neighbour: at most 5e-3 is seen.
ROUNDED_OTHERWISE = 1e-2


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.second = nn.Embedding(500, 64), nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(self.embed(ids))))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Expected:
    """decoded: with the matrices that the artifact decodes to; rounded: and with activations as int8 rounds them."""

    decoded: np.ndarray
    rounded: np.ndarray


@dataclass(frozen=True)
class Files:
    """folder: NAME.onnx, NAME.ort and the inputs in NAME.npz; expected: by name."""

    folder: Path
    expected: Mapping[str, Expected]


def activations_of_8_bits(x: np.ndarray) -> np.ndarray:
    """What DynamicQuantizeLinear, by its definition, makes of x."""
    low, high = min(x.min(), 0), max(x.max(), 0)
    scale = (high - low) / 255
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale


def maps_of_7_bits(matrix: np.ndarray) -> np.ndarray:
    scales = np.abs(matrix).max(1, keepdims=True) / 64
    return np.rint(matrix / scales) * scales


def expected_of(model: Model, artifact: Artifact, bits: str) -> Expected:
    table, *maps = (layer.operator.to(torch.float64).to_dense().numpy() for layer in artifact.layers)
    biases = [each.bias.detach().numpy() for each in (model.first, model.second)]

    def answer(maps: list[np.ndarray], activations: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        between = np.maximum(activations(table[IDS]) @ maps[0].T + biases[0], 0)
        return np.asarray(activations(between) @ maps[1].T + biases[1])

    codec = parse_bits(bits)
    assert isinstance(codec, Grid)
    narrow = maps if codec.shared == "row" and bits != "8" else [maps_of_7_bits(each) for each in maps]
    return Expected(answer(maps, lambda x: x), answer(narrow, activations_of_8_bits))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.manual_seed(0)
    model, folder = Model(), tmp_path_factory.mktemp("files")
    source = open_source(token_graph(model, tmp_path_factory.mktemp("graph") / "dense.onnx"))
    expected = {}
    for name, (bits, lowering) in CASES.items():
        codec = parse_bits(bits)
        settings = CompressSettings(FitSettings(), include=("none",), dense=codec, table=codec)
        if isinstance(lowering, Stages | Blocks):
            settings = CompressSettings(FitSettings(stages=8, steps=5, store=codec), table=codec)
        artifact = fit_model(source, settings, beside=folder)
        export_onnx(artifact, folder / f"{name}.onnx", source=source, settings=ExportSettings(lowering=lowering))
        np.savez(folder / f"{name}.npz", ids=IDS)
        expected[name] = expected_of(model, artifact, bits)
    converted = tmp_path_factory.mktemp("converted")
    ort_format._convert(folder, converted)  # one process for all, where write_ort takes one for each
    for path in converted.glob("*.ort"):
        path.rename(folder / path.name.replace(".basic", ""))
    return Files(folder, expected)


def in_chromium(files: Files) -> Ran:
    chromium = find_chromium()
    if chromium is None or not MODULES.is_dir():
        missing = "no Chromium (apt-get install chromium)" if chromium is None else "no npm, or make has not run it"
        if "CHROMIUM" in os.environ:
            pytest.fail(missing)
        pytest.skip(f"ONNX Runtime Web is not tried: {missing}")
    ids = json.dumps({"dims": IDS.shape, "data": IDS.ravel().tolist()})
    script = Path(__file__).with_name("run_in_chromium.mjs")
    done = subprocess.run(
        ["node", script, chromium, MODULES, files.folder, ids], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {Path(name).stem: answer for name, answer in json.loads(done.stdout).items()}
    shape = (*IDS.shape, 64)
    answers = {name: {"ids": np.array(each).reshape(shape)} for name, each in found.items() if isinstance(each, list)}
    return Ran("", answers, {name: each for name, each in found.items() if isinstance(each, str)})


@pytest.fixture(scope="module", params=["oldest", "current", "ort", "openvino", "web"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def ran(runtime: str, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    if runtime == "web":
        return in_chromium(files)
    python, ending, provider = {
        "oldest": (python_of("OLDEST_PYTHON"), ".onnx", CPU),
        "current": (sys.executable, ".onnx", CPU),
        "ort": (sys.executable, ".ort", CPU),
        "openvino": (python_of("OPENVINO_PYTHON"), ".onnx", OPENVINO),
    }[runtime]
    done = run_models(python, files.folder, tmp_path_factory.mktemp(runtime) / "answers", ending, provider)
    assert runtime != "oldest" or done.version == OLDEST
    return done


@pytest.mark.parametrize("name", CASES)
def test_a_file_answers_what_torch_does(name: str, runtime: str, ran: Ran, files: Files) -> None:
    assert name not in ran.errors, ran.errors[name]
    found, expected = ran.answers[name]["ids"], files.expected[name]
    _, lowering = CASES[name]
    if isinstance(lowering, Int8):
        assert relative_error(found, expected.decoded) < ROUNDED
        tolerance = ROUNDED_OTHERWISE if runtime == "openvino" else TOLERANCE
        assert relative_error(found, expected.rounded) < tolerance
    else:
        assert relative_error(found, expected.decoded) < TOLERANCE
