"""What an export is compared with is found without the finder that made it; what is not found is an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.checkpoint.products import Product, products
from spm_compress.errors import ExportError, VerificationError
from spm_compress.export.splicing import matches, writer
from spm_compress.forms.lowering import Blocks, Dense, Lowering, Stages

N = 40
WEIGHT = np.random.default_rng(0).standard_normal((N, N)).astype(np.float32)
SETTINGS = CompressSettings(FitSettings(stages=2, steps=2, block=8))


def save(folder: Path, nodes: list[onnx.NodeProto], y: list[object], **tensors: np.ndarray) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", N])
    end = helper.make_tensor_value_info("y", TensorProto.FLOAT, y)
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", [x], [end], initializers)
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture
def twice(tmp_path: Path) -> tuple[Path, Artifact]:
    """One weight, used twice."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "w"], ["y"])]
    path = save(tmp_path, nodes, ["batch", N], w=WEIGHT)
    return path, fit_model(open_source(path), SETTINGS, beside=tmp_path)


@pytest.mark.parametrize("lowering", [Stages(), Blocks(), Dense()], ids=lambda each: each.name)
def test_a_use_that_the_finder_overlooks_fails_the_export(
    twice: tuple[Path, Artifact], lowering: Lowering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, artifact = twice

    def all_but_one(model: ir.Model) -> Iterator[Product]:
        yield next(products(model))

    monkeypatch.setattr(matches, "products", all_but_one)
    # What the finder overlooks, rule 3 of the splice would still give the matrix to.
    monkeypatch.setattr(writer.Writer, "replace_elsewhere", lambda self, match: [])
    monkeypatch.setattr(writer.Writer, "replace_copies", lambda self, layers, digests: {})
    with pytest.raises(VerificationError, match="ONNX Runtime and the torch operator differ by"):
        export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=ExportSettings(lowering))
    assert not (tmp_path / "out.onnx").exists()


def test_a_fitted_weight_that_is_not_in_the_graph_is_an_error_unless_that_is_allowed(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("MatMul", ["h", "v"], ["y"])]
    path = save(tmp_path, nodes, ["batch", N], w=WEIGHT, v=2 * WEIGHT.T)
    artifact = fit_model(open_source(path), SETTINGS, beside=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    graph = save(other, nodes, ["batch", N], w=WEIGHT, v=WEIGHT + 1)
    with pytest.raises(ExportError, match=r"^v: fitted, but the graph does not multiply by .*`allow_missing`"):
        export_onnx(artifact, tmp_path / "out.onnx", graph=graph, settings=ExportSettings(Blocks()))
    assert not (tmp_path / "out.onnx").exists()
    allowed = ExportSettings(Blocks(), allow_missing=True)
    made = export_onnx(artifact, tmp_path / "out.onnx", graph=graph, settings=allowed)
    assert made.spliced.missing == ("v",)
    assert list(made.spliced.nodes) == ["w"]
    assert set(made.spliced.runs.values()) == {"blocks feature-major"}


@pytest.mark.parametrize("declared", [["batch", N], ["?", "many"], [None, None], ["batch", 40]], ids=str)
@pytest.mark.parametrize("lowering", [Stages(), Blocks(), Dense()], ids=lambda each: each.name)
def test_outputs_stay_declared_as_they_were(declared: list[object], lowering: Lowering, tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    path = save(tmp_path, nodes, declared, w=WEIGHT)
    artifact = fit_model(open_source(path), SETTINGS, beside=tmp_path)
    export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=ExportSettings(lowering))
    before, after = onnx.load(path).graph, onnx.load(tmp_path / "out.onnx").graph
    assert (list(after.input), list(after.output)) == (list(before.input), list(before.output))


@pytest.mark.parametrize(
    "name", ["w.spm.0.off_diagonal", "w.spm.x", "w.matrix.0", "w.operator", "w.spm.0.scales", "w.spm"]
)
@pytest.mark.parametrize("lowering", [Stages(), Blocks(), Dense()], ids=lambda each: each.name)
def test_names_of_the_graph_that_look_like_ours_are_left_alone(name: str, lowering: Lowering, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="w"),
        helper.make_node("Add", ["h", name], ["y"], name=f"{name}.y"),
    ]
    path = save(tmp_path, nodes, ["batch", N], w=WEIGHT, **{name: np.arange(N, dtype=np.float32)})
    artifact = fit_model(open_source(path), SETTINGS, beside=tmp_path)
    export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=ExportSettings(lowering))
    (kept,) = [each for each in onnx.load(tmp_path / "out.onnx").graph.initializer if each.name == name]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), np.arange(N))
