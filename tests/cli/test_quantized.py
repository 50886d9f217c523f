"""Models of which a part is quantized already: the rest is fitted, and that part is named, by `fit` and `inspect`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantFormat
from quantized_graphs import dynamically, in_blocks, statically
from running import spm
from safetensors.torch import save_file

from spm_compress import read_artifact

WAYS: dict[str, tuple[Callable[..., None], str]] = {
    "QDQ": (statically, "w1_quantized stays as it is, quantized already (int8, DequantizeLinear)"),
    "QLinearMatMul": (
        partial(statically, fmt=QuantFormat.QOperator),
        "w1_quantized stays as it is, quantized already (QLinearMatMul)",
    ),
    "MatMulInteger": (dynamically, "w1_quantized stays as it is, quantized already (MatMulInteger)"),
    "MatMulNBits": (in_blocks, "3 tensors stay as they are (w1_Q4, ...), quantized already (MatMulNBits)"),
    "blocks of QDQ": (
        partial(in_blocks, fmt=QuantFormat.QDQ),
        "w1_DQ_Q4 stays as it is, quantized already (DequantizeLinear)",
    ),
}


def two_products(path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w1": rng.normal(size=(64, 96)), "w2": rng.normal(size=(96, 64))}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("MatMul", ["r", "w2"], ["y"], name="second"),
        ],
        "two_products",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("way", WAYS)
def test_a_graph_that_is_quantized_in_part(way: str, tmp_path: Path) -> None:
    quantize, words = WAYS[way]
    two_products(tmp_path / "dense.onnx")
    quantize(tmp_path / "dense.onnx", tmp_path / "m.onnx", without=["second"])
    bits = spm("fit", "m.onnx", "--include", "none", "--dense-bits", "4", cwd=tmp_path)
    assert bits.returncode == 0, bits.stderr
    assert [layer.name for layer in read_artifact(tmp_path / "m.spm.safetensors").layers] == ["w2"]
    (line,) = (line for line in bits.stderr.splitlines() if "quantized already" in line)
    assert words in line and line.endswith("; compress the model it was quantized from")
    seen = spm("inspect", "m.onnx", "--probe-steps", "0", cwd=tmp_path)
    assert seen.returncode == 0, seen.stderr
    assert words.rpartition(", ")[2] in seen.stdout or words.rpartition("), ")[2] in seen.stdout


def test_a_checkpoint_that_is_packed_in_part(tmp_path: Path) -> None:
    values = {
        "l.qweight": torch.ones(8, 64, dtype=torch.int32),
        "l.qzeros": torch.ones(64, 8, dtype=torch.int32),
        "l.scales": torch.randn(64, 64).half(),
        "l.g_idx": torch.arange(64, dtype=torch.int32),
        "head.weight": torch.randn(96, 64),
    }
    save_file(values, tmp_path / "m.safetensors")
    for more in (["--steps", "1"], ["--include", "none", "--dense-bits", "4"]):
        fit = spm("fit", "m.safetensors", *more, cwd=tmp_path)
        assert fit.returncode == 0, fit.stderr
        assert (
            "m.safetensors: 4 tensors stay as they are (l.qweight, ...), packed by GPTQ; compress the model it was "
            "quantized from, or dequantize this one first" in fit.stderr
        )
        artifact = read_artifact(tmp_path / "m.spm.safetensors")
        assert [layer.name for layer in artifact.layers] == ["head.weight"]
        assert all(torch.equal(artifact.tensors[name], values[name]) for name in values if name != "head.weight")
    quiet = spm("fit", "m.safetensors", "--steps", "1", "--quiet", cwd=tmp_path)
    assert "packed" not in quiet.stderr
