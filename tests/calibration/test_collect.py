"""Inputs of layers, watched while real models run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file

from spm_compress import open_source
from spm_compress.calibration import collect, load_or_collect, open_runner, paired_moments
from spm_compress.calibration import runner as runner_module
from spm_compress.errors import SpmError

DRAW = np.random.default_rng(0)
W, V, K = (DRAW.standard_normal(shape).astype(np.float32) for shape in ((6, 4), (4, 5), (3, 6)))
X = DRAW.standard_normal((21, 6)).astype(np.float32)
IMAGE = DRAW.standard_normal((5, 6, 2, 3)).astype(np.float32)


def covariance(rows: np.ndarray) -> np.ndarray:
    return np.cov(rows.reshape(-1, rows.shape[-1]).astype(np.float64), rowvar=False, bias=True)


@pytest.fixture
def products(tmp_path: Path) -> Path:
    """y = relu(x w) v, with w read twice, and a 1x1 convolution of an image beside it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"]),
        helper.make_node("Neg", ["x"], ["minus"]),
        helper.make_node("MatMul", ["minus", "w"], ["again"]),
        helper.make_node("Conv", ["image", "k"], ["z"]),
    ]
    kernel = K[:, :, None, None]
    initializers = [numpy_helper.from_array(a, n) for a, n in ((W, "w"), (V, "v"), (kernel, "k"))]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6]),
        helper.make_tensor_value_info("image", TensorProto.FLOAT, ["m", 6, "a", "b"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "again", "z")]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=X, image=np.repeat(IMAGE, 5, 0)[:21])
    return path


def test_inputs_of_onnx_products(products: Path, data: Path) -> None:
    found = collect(open_runner(open_source(products), data), ["w", "v", "k", "absent"])
    assert set(found) == {"w", "v", "k"}
    # w is read twice, with x and with -x
    np.testing.assert_allclose(found["w"].covariance, covariance(np.concatenate([X, -X])), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["v"].covariance, covariance(np.maximum(X @ W, 0)), rtol=1e-4, atol=1e-5)
    pixels = np.moveaxis(np.repeat(IMAGE, 5, 0)[:21], 1, -1)
    np.testing.assert_allclose(found["k"].covariance, covariance(pixels), rtol=1e-4, atol=1e-5)
    assert (found["w"].rows, found["v"].rows, found["k"].rows) == (42, 21, 21 * 6)


def test_weights_beside_the_model_and_products_with_their_transpose(tmp_path: Path) -> None:
    square = DRAW.standard_normal((6, 6)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "wt"], ["g"]),
        helper.make_node("MatMul", ["x", "u"], ["y"]),
        helper.make_node("MatMul", ["g", "u"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 6]) for name in ("y", "z")],
        [numpy_helper.from_array(square, "w"), numpy_helper.from_array(square + 1, "u")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    np.savez(tmp_path / "x.npz", x=X)
    runner = open_runner(open_source(tmp_path / "m.onnx"), tmp_path / "x.npz")
    assert runner.order(["w", "u"]) == [("w",), ("u",)]  # one of two inputs in common is not the same
    found = collect(runner, ["w", "u"])
    np.testing.assert_allclose(found["w"].covariance, covariance(X), rtol=1e-4, atol=1e-5)
    both = np.concatenate([X, X @ square @ square.T])
    np.testing.assert_allclose(found["u"].covariance, covariance(both), rtol=1e-4, atol=1e-3)


def test_replaced_layers_change_what_follows(products: Path, data: Path) -> None:
    original, now = (open_runner(open_source(products), data) for _ in range(2))
    shift = np.linspace(-1, 1, 4, dtype=np.float32)
    now.replace("w", torch.from_numpy(2 * W.T), torch.from_numpy(shift))
    found = paired_moments(original, now, ["v"])["v"]
    before, after = np.maximum(X @ W, 0).astype(np.float64), np.maximum(2 * X @ W + shift, 0).astype(np.float64)
    np.testing.assert_allclose(found.mean, before.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.now.mean, after.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.now.covariance, covariance(after), rtol=1e-4, atol=1e-5)
    crossed = (before - before.mean(0)).T @ (after - after.mean(0)) / len(X)
    np.testing.assert_allclose(found.cross, crossed, rtol=1e-4, atol=1e-5)


def test_what_was_found_is_kept_until_model_or_data_change(
    products: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    real = runner_module.open_onnx_runner
    monkeypatch.setattr(runner_module, "open_onnx_runner", lambda *given: opened.append(1) or real(*given))
    cache = tmp_path / "kept.safetensors"
    source = open_source(products)
    first = load_or_collect(source, data, ["w", "v"], cache)
    again = load_or_collect(source, data, ["v"], cache)
    assert len(opened) == 1
    assert torch.equal(first["v"].covariance, again["v"].covariance)
    np.savez(data, x=X + 1, image=np.repeat(IMAGE, 5, 0)[:21])
    assert not torch.equal(load_or_collect(source, data, ["v"], cache)["v"].mean, first["v"].mean)
    cache.write_bytes(b"damaged")
    load_or_collect(source, data, ["v"], cache)
    load_or_collect(source, data, ["k"], cache)  # not asked for before
    assert len(opened) == 4


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"xx": X, "image": IMAGE[:1].repeat(21, 0)}, r"no input 'xx'; near misses: x; its inputs: x, image"),
        ({"x": X}, r"lacks the input 'image'"),
        ({"x": X[:0], "image": IMAGE[:0]}, r"input 'x' has no samples"),
        ({"x": X, "image": IMAGE}, r"different numbers of samples"),
        ({"x": X * np.nan, "image": IMAGE[:1].repeat(21, 0)}, r"input 'x' holds NaN"),
        ({"x": X[:, :5], "image": IMAGE[:1].repeat(21, 0)}, r"does not run on the calibration data"),
        ({"x": X * 1e38, "image": IMAGE[:1].repeat(21, 0)}, r"activations before this weight are NaN or infinite"),
    ],
)
def test_data_that_does_not_fit_is_one_line(
    arrays: dict[str, np.ndarray], line: str, products: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(SpmError, match=line) as raised, np.errstate(over="ignore"):
        collect(open_runner(open_source(products), tmp_path / "bad.npz"), ["w", "v", "k"])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "make", "line"),
    [
        ("absent.npz", lambda path: None, r"no such calibration file"),
        ("a.npz", lambda path: path.write_bytes(b"nothing"), r"cannot be read as \.npz"),
        ("a.safetensors", lambda path: path.write_bytes(b"nothing"), r"cannot be read as \.safetensors"),
        ("a.csv", lambda path: path.write_text("1,2"), r"not a format of calibration data"),
        ("a.txt", lambda path: path.write_text("words"), r"text needs the tokenizer of a Hugging Face folder"),
        ("a.npz", lambda path: np.savez(path, x=np.array([{}], dtype=object)), r"cannot be read as \.npz"),
    ],
)
def test_files_that_are_no_data(
    name: str, make: Callable[[Path], Any], line: str, products: Path, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(SpmError, match=line):
        open_runner(open_source(products), tmp_path / name)


def test_weights_without_a_model_cannot_be_calibrated(tmp_path: Path, data: Path) -> None:
    save_file({"w.weight": torch.ones(4, 4)}, tmp_path / "w.safetensors")
    with pytest.raises(SpmError, match="holds weights without a model that can be run"):
        open_runner(open_source(tmp_path / "w.safetensors"), data)


def test_a_real_model_on_text_counts_no_padding(minilm: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    texts = ["A man is eating food.", "Short.", "The girl is carrying a baby on her back through the rain."]
    (tmp_path / "texts.txt").write_text("\n\n".join(texts), encoding="utf-8")
    names = [f"encoder.layer.1.attention.self.{part}.weight" for part in ("query", "key", "value")]
    runner = open_runner(open_source(minilm), tmp_path / "texts.txt")
    assert runner.order([*names, "encoder.layer.0.output.dense.weight"]) == [
        ("encoder.layer.0.output.dense.weight",),
        tuple(names),
    ]
    found = collect(runner, names)
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    with torch.no_grad():  # one by one, so that nothing is padded
        rows = [
            model(**tokenizer(t, return_tensors="pt"), output_hidden_states=True).hidden_states[1][0] for t in texts
        ]
    exact = torch.cat(rows).numpy()
    assert found[names[0]].rows == len(exact)
    np.testing.assert_allclose(found[names[0]].mean, exact.mean(0), atol=1e-5)
    np.testing.assert_allclose(found[names[0]].covariance, covariance(exact), rtol=1e-3, atol=1e-5)
