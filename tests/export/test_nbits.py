"""Four bits that stay packed in memory: `--weights nbits`."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made import gaussian
from onnx import version_converter
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact, Source
from spm_compress.codecs import parse_bits
from spm_compress.errors import ExportError
from spm_compress.export import Weights, export_layers
from spm_compress.forms.lowering import Dense

NBITS = ExportSettings(lowering=Dense(), weights=Weights.NBITS)


def chain(folder: Path, *widths: int) -> Path:
    torch.manual_seed(0)
    layers = OrderedDict((f"{i}", nn.Linear(a, b)) for i, (a, b) in enumerate(itertools.pairwise(widths)))
    save_file(nn.Sequential(layers).state_dict(), folder / "chain.safetensors")
    return folder / "chain.safetensors"


def fitted(path: Path, bits: str) -> tuple[Artifact, Source]:
    source = open_source(path)
    settings = CompressSettings(FitSettings(), include=("none",), dense=parse_bits(bits))
    return fit_model(source, settings, beside=path.parent), source


def kernels(path: Path, folder: Path) -> list[str]:
    """Return the operators that ONNX Runtime runs a file as."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def answer(path: Path) -> np.ndarray:
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name, width = runtime.get_inputs()[0].name, runtime.get_inputs()[0].shape[-1]
    found: np.ndarray = runtime.run(None, {name: gaussian(7, width).numpy()})[0]
    return found


@pytest.mark.parametrize("bits", ["4", "4/32", "4/64", "4/128"])
def test_maps_in_four_bits_run_packed_and_answer_as_torch(bits: str, tmp_path: Path) -> None:
    artifact, source = fitted(chain(tmp_path, 256, 128, 384), bits)
    done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=NBITS)
    assert set(done.spliced.runs.values()) == {"nbits"}
    assert kernels(tmp_path / "out.onnx", tmp_path).count("MatMulNBits") == 2
    folded = ExportSettings(lowering=Dense())
    export_onnx(artifact, tmp_path / "folded.onnx", source=source, settings=folded)
    found, expected = (answer(tmp_path / name) for name in ("out.onnx", "folded.onnx"))
    error = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    assert error < 2e-2  # activations of 8 bits, block by block; a wrong scale, order or sign is far beyond
    stored = sum(layer.stored_bytes for layer in artifact.layers)
    assert (tmp_path / "out.onnx").stat().st_size < stored + 12_000


@pytest.mark.parametrize(("bits", "width"), [("8", 256), ("3", 256), ("4", 100)])
def test_what_has_no_such_kernel_is_made_at_load_as_ever(bits: str, width: int, tmp_path: Path) -> None:
    artifact, source = fitted(chain(tmp_path, width, 64, 64), f"{bits}")
    done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=NBITS)
    of_first = done.spliced.runs[done.spliced.nodes["0.weight"][0]]
    assert of_first == "dense"
    assert max(each.error for each in done.agreements) < (2e-2 if bits == "4" else 1e-6)


def test_auto_times_both_and_float32_activations_leave_it_out(tmp_path: Path) -> None:
    artifact, source = fitted(chain(tmp_path, 256, 128, 64), "4")
    auto = ExportSettings(weights=Weights.AUTO)
    done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=auto)
    assert {"dense", "int8", "nbits"} == set(done.choices[0].microseconds)
    exact = ExportSettings(weights=Weights.AUTO, rounds_activations=False)
    done = export_onnx(artifact, tmp_path / "exact.onnx", source=source, settings=exact)
    assert set(done.choices[0].microseconds) == {"dense"}


def test_a_graph_of_an_earlier_opset_is_refused_by_name_and_auto_goes_without(tmp_path: Path) -> None:
    artifact, source = fitted(chain(tmp_path, 128, 64, 64), "4")
    dense = tmp_path / "dense.onnx"
    export_onnx(
        artifact, tmp_path / "first.onnx", source=source, settings=ExportSettings(lowering=Dense()), dense_path=dense
    )
    onnx.save(version_converter.convert_version(onnx.load(dense), 17), dense)
    with pytest.raises(ExportError, match="opset 17, 4 bits in memory need 21 or later; convert it with"):
        export_onnx(artifact, tmp_path / "out.onnx", graph=dense, settings=NBITS)
    assert not (tmp_path / "out.onnx").exists()
    done = export_onnx(artifact, tmp_path / "out.onnx", graph=dense, settings=ExportSettings(weights=Weights.AUTO))
    assert "nbits" not in done.spliced.runs.values()


@pytest.mark.parametrize("weights", [Weights.FOLDED, Weights.NBITS])
def test_layers_with_rounded_activations_are_written_one_by_one(weights: Weights, tmp_path: Path) -> None:
    artifact, _ = fitted(chain(tmp_path, 1024, 1024, 64), "4")
    done = export_layers(artifact, tmp_path / "layers", settings=ExportSettings(batches=(64,), weights=weights))
    ways = [way for each in done for way in each.spliced.runs.values()]
    assert set(ways) <= ({"nbits"} if weights is Weights.NBITS else {"dense", "int8"})
    assert max(each.error for file in done for each in file.agreements) < 2e-2
