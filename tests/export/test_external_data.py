"""Data beside a model: wherever it lies, every way on goes through, and nothing is left that does not open."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.export import Precision, write_ort
from spm_compress.export.side_by_side import VerifySettings, side_by_side
from spm_compress.forms.lowering import Blocks

SETTINGS = CompressSettings(FitSettings(stages=2, steps=2, block=8))


def looked_up() -> onnx.ModelProto:
    """A table, a product, a bias and a Constant node."""
    generator = np.random.default_rng(0)
    tensors = {"e": (50, 40), "w": (40, 48), "b": (48,)}
    arrays = {name: generator.standard_normal(shape).astype(np.float32) for name, shape in tensors.items()}
    nodes = [
        helper.make_node("Gather", ["e", "i"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Add", ["h", "b"], ["a"]),
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(arrays["b"], "c")),
        helper.make_node("Mul", ["a", "c"], ["y"]),
    ]
    i = helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 48])
    graph = helper.make_graph(nodes, "g", [i], [y], [numpy_helper.from_array(x, name) for name, x in arrays.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(path: Path) -> np.ndarray:
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(runtime.run(None, {"i": np.arange(7)})[0])


@settings(max_examples=6, deadline=None)
@given(
    threshold=st.sampled_from([0, 100, 1024, 1 << 20]),
    one_file=st.booleans(),
    attributes=st.booleans(),
    precision=st.sampled_from(list(Precision)),
    dense_elsewhere=st.booleans(),
)
def test_every_way_on_goes_through(
    threshold: int, one_file: bool, attributes: bool, precision: Precision, dense_elsewhere: bool
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for each in ("model", "out", "dense"):
            (folder / each).mkdir()
        path = folder / "model" / "m.onnx"
        options = {"location": "m.data"} if one_file else {}
        onnx.save(
            looked_up(),
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=one_file,
            size_threshold=threshold,
            convert_attribute=attributes,
            **options,
        )
        source = open_source(path)
        artifact = fit_model(source, SETTINGS, beside=folder)
        assert [layer.name for layer in artifact.layers] == ["w"]
        dense_path = folder / ("dense" if dense_elsewhere else "out") / "dense.onnx"
        made = export_onnx(
            artifact,
            folder / "out" / "out.onnx",
            source=source,
            settings=ExportSettings(Blocks(), precision=precision),
            dense_path=dense_path,
        )
        expected = answer(path)
        shutil.rmtree(folder / "model")  # nothing refers to it any more
        assert np.array_equal(answer(dense_path), expected)
        assert np.isfinite(answer(made.path)).all()
        assert side_by_side(made.path, dense_path, VerifySettings(batches=(3,), sequences=(3,))).differences
        assert write_ort(made.path, folder / "out" / "out.ort").bytes
        files = {file.name for file in folder.rglob("*") if file.is_file()}
        assert files == {"out.onnx", "dense.onnx", "out.ort", "out.required_operators.config"}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 40)
        self.layer = nn.Linear(40, 320)

    def forward(self, i: torch.Tensor) -> torch.Tensor:
        return self.layer(self.table(i))


def test_what_the_exporter_of_torch_writes_by_default_is_exported_again(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Network().eval(), (torch.zeros(2, 5, dtype=torch.long),), tmp_path / "m.onnx", verbose=False)
    assert (tmp_path / "m.onnx.data").is_file()
    source = open_source(tmp_path / "m.onnx")
    artifact = fit_model(source, SETTINGS, beside=tmp_path)
    (tmp_path / "else").mkdir()
    made = export_onnx(artifact, tmp_path / "else" / "out.onnx", source=source, settings=ExportSettings(Blocks()))
    assert list(made.spliced.nodes) == [layer.name for layer in artifact.layers]
    assert [file.name for file in (tmp_path / "else").iterdir()] == ["out.onnx"]


def test_a_file_of_data_that_is_cut_is_told_before_anything_is_written(tmp_path: Path) -> None:
    onnx.save(looked_up(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    data = tmp_path / "m.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(Exception, match=r"m\.onnx: .* reaches beyond the end of 'm\.data'"):
        open_source(tmp_path / "m.onnx")
