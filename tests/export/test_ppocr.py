"""A real ONNX model that nobody here exported: opset 12, weights in Constant nodes, dynamic image width."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.forms.lowering import Blocks, Dense, Lowering, Stages


@pytest.mark.parametrize(
    "lowering",
    [
        pytest.param(Stages(), id="stages"),
        pytest.param(Blocks(), id="blocks", marks=pytest.mark.slow),
        pytest.param(Dense(), id="dense", marks=pytest.mark.slow),
        pytest.param(None, id="auto", marks=pytest.mark.slow),
    ],
)
def test_text_recognition_is_replaced_and_all_else_stays(
    ppocr: Path, lowering: Lowering | None, tmp_path: Path
) -> None:
    source = open_source(ppocr)
    artifact = fit_model(source, CompressSettings(FitSettings(stages=10, steps=5)), beside=tmp_path)
    assert len(artifact.layers) == 29, "attention, feedforward, 1x1 convolutions, and the head of 6,625 characters"
    exported = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(lowering))
    assert exported.spliced.missing == ()
    dense, out = onnx.load(ppocr), onnx.load(exported.path)
    assert [(each.key, each.value) for each in out.metadata_props] == [
        (each.key, each.value) for each in dense.metadata_props
    ]
    assert (out.graph.input, out.graph.output) == (dense.graph.input, dense.graph.output)
    assert next(each.version for each in out.opset_import if each.domain == "") == 12
    fitted = {product for nodes in exported.spliced.nodes.values() for product in nodes}
    names = {node.name for node in out.graph.node}
    assert fitted <= names
    computing = {node.name for node in dense.graph.node if node.op_type not in ("Constant", "MatMul", "Conv")}
    assert computing <= names
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    for width in (48, 320):
        x = np.random.default_rng(0).standard_normal((2, 3, 48, width)).astype(np.float32)
        assert session.run(None, {"x": x})[0].shape == (2, width // 8, 6625)
