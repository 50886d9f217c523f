"""ONNX graphs in torch: the answers of ONNX Runtime, the source's tensors as parameters, nothing run of a file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import trainable_graphs
from onnx import helper, numpy_helper
from torch import nn

from spm_compress import open_source
from spm_compress.checkpoint.imported_graph import ImportedGraph, import_graph, why_not_imported
from spm_compress.checkpoint.onnx_source import OnnxSource
from spm_compress.checkpoint.trace import own_tensors
from spm_compress.errors import SourceError

pytest.importorskip("onnx2fx", reason="onnx2fx is for Python 3.11 or later")


def opened(path: Path) -> OnnxSource:
    source = open_source(path)
    assert isinstance(source, OnnxSource)
    return source


def require_same_answers(path: Path, model: ImportedGraph, *shape: int) -> None:
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    expected = dict(zip([each.name for each in runtime.get_outputs()], runtime.run(None, {"x": x}), strict=True))
    with torch.no_grad():
        found = model(x=torch.from_numpy(x))
    for name, array in expected.items():
        np.testing.assert_allclose(found[name].numpy(), array, rtol=1e-4, atol=1e-5)
        assert np.abs(array).max() > 1e-2, "an answer that is nothing would agree with anything"


@pytest.mark.parametrize(
    ("make", "shape"), [(trainable_graphs.classifier, (5, 64)), (trainable_graphs.convolutions, (2, 32, 6, 6))]
)
def test_a_graph_answers_as_in_onnx_runtime(
    make: Callable[[Path], Path], shape: tuple[int, ...], tmp_path: Path
) -> None:
    path = make(tmp_path / "model.onnx")
    require_same_answers(path, import_graph(opened(path)), *shape)


@pytest.mark.parametrize("width", [48, 320])
def test_text_recognition_answers_as_in_onnx_runtime(ppocr: Path, width: int) -> None:
    require_same_answers(ppocr, import_graph(opened(ppocr)), 2, 3, 48, width)


@pytest.mark.parametrize("make", [trainable_graphs.classifier, trainable_graphs.convolutions])
def test_every_tensor_is_there_as_the_source_reads_it(make: Callable[[Path], Path], tmp_path: Path) -> None:
    source = opened(make(tmp_path / "model.onnx"))
    model = import_graph(source)
    held = own_tensors(model)
    for name in source.tensors():
        assert torch.equal(held[model.members[name]], source.read(name)), name


def test_plain_products_are_linear_layers_and_only_weights_train(tmp_path: Path) -> None:
    model = import_graph(opened(trainable_graphs.convolutions(tmp_path / "model.onnx")))
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert linears == {model.members["point"].removesuffix(".weight")}, "`twice` skips places, `left` is on the left"
    trained = {name for name, member in model.members.items() if member in dict(model.named_parameters())}
    assert trained == {"depth", "scale", "shift", "point", "point.bias", "twice", "left"}


def test_a_softmax_at_the_end_has_its_logits(tmp_path: Path) -> None:
    model = import_graph(opened(trainable_graphs.classifier(tmp_path / "model.onnx")))
    answer = model(x=torch.ones(2, 64))
    assert list(answer) == ["y", "logits"]
    torch.testing.assert_close(answer["logits"].softmax(-1), answer["y"])


def test_an_output_of_any_name_is_the_output(tmp_path: Path) -> None:
    model = import_graph(opened(trainable_graphs.convolutions(tmp_path / "model.onnx")))
    answer = model(x=torch.ones(2, 32, 6, 6))
    assert list(answer) == ["y", "output"]
    assert torch.equal(answer["y"], answer["output"])


def test_names_in_a_file_are_never_code(tmp_path: Path) -> None:
    names = ['"); open("owned", "w"); ("', "v0", "import", "", "a.b", "x\n    raise SystemExit\n", "self"]
    tensors = [numpy_helper.from_array(np.eye(4, dtype=np.float32) * (i + 2), f"w{n}") for i, n in enumerate(names)]
    values = ["x y", *names[:3], *names[4:], "last", "y"]
    nodes = [
        helper.make_node("MatMul", [values[i], tensor.name], [values[i + 1]], name=names[i])
        for i, tensor in enumerate(tensors)
    ]
    graph = helper.make_graph(
        nodes,
        names[0],
        [helper.make_tensor_value_info("x y", onnx.TensorProto.FLOAT, [names[0], 4])],
        [helper.make_tensor_value_info(values[len(names)], onnx.TensorProto.FLOAT, [names[0], 4])],
        tensors,
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    model = import_graph(opened(path))
    answer = model(**{"x y": torch.ones(1, 4)})[values[len(names)]].detach()
    assert float(answer[0, 0]) == pytest.approx(float(np.prod(np.arange(len(names)) + 2)))
    assert not Path("owned").exists()


def test_an_operator_without_a_counterpart_is_named(tmp_path: Path) -> None:
    source = opened(trainable_graphs.with_operator(tmp_path / "model.onnx", "QuickGelu"))
    with pytest.raises(SourceError, match=r"model.onnx: cannot be trained, as onnx2fx .* no operator QuickGelu of com"):
        import_graph(source)
    why = why_not_imported(source, ["weight"])
    assert why is not None and why.endswith("no operator QuickGelu of com.microsoft")


def test_weights_that_no_layer_can_take_the_place_of_are_told(tmp_path: Path) -> None:
    source = opened(trainable_graphs.convolutions(tmp_path / "model.onnx"))
    assert why_not_imported(source, ["point", "twice"]) is None
    assert (
        why_not_imported(source, ["twice", "left"]) == "it does not multiply by a fitted weight in plain products alone"
    )


def test_without_the_importer_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(trainable_graphs.classifier(tmp_path / "model.onnx"))
    monkeypatch.setitem(sys.modules, "onnx2fx", None)
    with pytest.raises(SourceError, match=r"pip install 'spm-compress\[train-onnx\]'"):
        import_graph(source)
    assert why_not_imported(source, ["head"]) is None
