"""Files of few bits: unpacked where it costs nothing, gathered as they are stored, multiplied as whole numbers."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from made import fitted_layer, gaussian, token_graph
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact, Source
from spm_compress.codecs import SCALES, Codec, StoredArray, integer, parse_bits
from spm_compress.export import Precision, write_ort
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.export.verification import session
from spm_compress.forms import Operator, StoredOperator
from spm_compress.forms.dense import Dense as DenseForm
from spm_compress.forms.lowering import Blocks, Dense, Int8, Rows

BITS = ["8", "7", "6", "5", "4", "3", "2", "1.6", "1", "4/32", "16"]
ROWS = 3000


class Sentence(nn.Module):
    """A table, a map, and the table again as the head, as language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.map = nn.Embedding(ROWS, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, ROWS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.map(self.embed(ids))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return token_graph(Sentence(), tmp_path_factory.mktemp("dense") / "dense.onnx")


def fitted(graph: Path, bits: str, folder: Path) -> tuple[Artifact, Source]:
    source = open_source(graph)
    settings = CompressSettings(FitSettings(), include=("none",), dense=parse_bits(bits), table=parse_bits(bits))
    return fit_model(source, settings, beside=folder), source


@pytest.mark.parametrize("bits", BITS)
def test_table_map_and_tied_head_decode_to_what_torch_has(bits: str, graph: Path, tmp_path: Path) -> None:
    artifact, source = fitted(graph, bits, tmp_path)
    assert len(artifact.layers) == 2
    path = tmp_path / "out.onnx"
    done = export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=Dense()))
    assert max(each.error for each in done.agreements) < 1e-6
    assert sorted(done.spliced.runs.values()) == ["dense", "dense", "rows"]
    stored = sum(layer.stored_bytes for layer in artifact.layers)
    assert path.stat().st_size < stored + 30_000  # the table once, as it is stored
    big = [each for each in onnx.load(path).graph.initializer if np.prod(each.dims) >= ROWS * 8]
    assert len(big) == 1


@pytest.mark.parametrize("bits", ["8", "4", "4/32", "1"])
def test_no_run_unpacks_more_rows_than_are_asked_for(bits: str, graph: Path, tmp_path: Path) -> None:
    """The profile of a session has the size of every value that a run makes; the head's matrix is made at load."""
    artifact, source = fitted(graph, bits, tmp_path)
    path = tmp_path / "out.onnx"
    export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=Dense()))
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    runtime = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    runtime.run(None, {"ids": np.zeros((1, 5), np.int64)})
    events = json.loads(Path(runtime.end_profiling()).read_text(encoding="utf-8"))
    made = [event["args"] for event in events if event.get("cat") == "Node" and "output_size" in event.get("args", {})]
    assert any(each["op_name"] == "Gather" for each in made)
    answer = 5 * ROWS * 4
    assert max(int(each["output_size"]) for each in made) <= answer


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("bits", ["4", "3/64", "16"])
def test_rows_are_looked_up_by_indices_of_any_shape(bits: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    node = onnx.helper.make_node("Gather", ["table", "ids"], ["y"])
    table = gaussian(200, 64)
    kind = onnx.TensorProto
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [node],
            "g",
            [onnx.helper.make_tensor_value_info("ids", kind.INT64, shape)],
            [onnx.helper.make_tensor_value_info("y", kind.FLOAT, (*shape, 64))],
            [onnx.numpy_helper.from_array(table.numpy(), "table")],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 13)],
        ir_version=8,
    )
    onnx.save(model, tmp_path / "dense.onnx")
    source = open_source(tmp_path / "dense.onnx")
    settings = CompressSettings(FitSettings(), include=("none",), table=parse_bits(bits))
    artifact = fit_model(source, settings, beside=tmp_path)
    export_onnx(artifact, tmp_path / "out.onnx", source=source)
    written = onnx.load(tmp_path / "out.onnx")
    assert written.opset_import[0].version == 13
    assert not any(each.data_type == kind.FLOAT and np.prod(each.dims) > 64 for each in written.graph.initializer)
    ids = torch.randint(0, 200, shape)
    (found,) = session(tmp_path / "out.onnx").run(None, {"ids": ids.numpy()})
    (layer,) = artifact.layers
    np.testing.assert_allclose(found, layer.operator.to_dense()[ids].numpy(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bits", ["8", "4", "3", "1.6", "1", "4/32"])
def test_whole_numbers_run_in_one_kernel(bits: str, tmp_path: Path) -> None:
    save_file(
        OrderedDict({"0.weight": gaussian(96, 64), "0.bias": gaussian(96, seed=2), "2.weight": gaussian(64, 96)}),
        tmp_path / "model.safetensors",
    )
    source = open_source(tmp_path / "model.safetensors")
    settings = CompressSettings(FitSettings(), include=("none",), dense=parse_bits(bits))
    artifact = fit_model(source, settings, beside=tmp_path)
    path, optimized = tmp_path / "out.onnx", tmp_path / "optimized.onnx"
    done = export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=Int8()))
    assert 1e-4 < max(each.error for each in done.agreements) < 0.05  # activations are rounded to 8 bits
    session(path, optimized=optimized)
    run = [node.op_type for node in onnx.load(optimized).graph.node]
    assert run.count("DynamicQuantizeMatMul") == 2
    assert set(run) <= {"DynamicQuantizeMatMul", "Relu"}


@pytest.mark.parametrize("bits", ["8", "7", "4/32", "1/32"])
def test_whole_numbers_do_not_saturate(bits: str, tmp_path: Path) -> None:
    """Without VNNI an x86 kernel adds two products in 16 bits: the worst is that all are the largest."""
    weight = 1 + gaussian(96, 64).abs() / 100
    save_file({"0.weight": weight, "2.weight": weight.T.contiguous()}, tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    settings = CompressSettings(FitSettings(), include=("none",), dense=parse_bits(bits))
    artifact = fit_model(source, settings, beside=tmp_path)
    path = tmp_path / "out.onnx"
    export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=Int8()))
    runtime = session(path)
    x = np.ones((3, 64), np.float32)
    (found,) = runtime.run(None, {runtime.get_inputs()[0].name: x})
    first, second = (layer.operator.to_dense().numpy() for layer in artifact.layers)
    np.testing.assert_allclose(found, x @ first.T @ second.T, rtol=0.02)


def test_activations_are_rounded_only_where_that_is_allowed(tmp_path: Path) -> None:
    save_file({"0.weight": gaussian(512, 512), "2.weight": gaussian(512, 512, seed=1)}, tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    settings = CompressSettings(FitSettings(), include=("none",), dense=parse_bits("8"))
    artifact = fit_model(source, settings, beside=tmp_path)
    for allowed in (True, False):
        wanted = ExportSettings(threads=1, batches=(64,), rounds_activations=allowed)
        done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=wanted)
        assert all(set(choice.microseconds) == ({"dense", "int8"} if allowed else {"dense"}) for choice in done.choices)
        assert (max(each.error for each in done.agreements) > 1e-4) == (Int8().name in done.spliced.runs.values())
    assert set(done.spliced.runs.values()) == {"dense"}


def test_angles_are_unpacked_at_load(tmp_path: Path) -> None:
    """At run time the file of few bits has the same nodes as that of float32."""
    weight = gaussian(256, 256)
    save_file({"0.weight": weight}, tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    found = []
    for bits in ("32", "5"):
        settings = CompressSettings(FitSettings(stages=20, steps=20, store=parse_bits(bits)))
        artifact = fit_model(source, settings, beside=tmp_path)
        path, optimized = tmp_path / f"{bits}.onnx", tmp_path / f"{bits}.optimized.onnx"
        export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=Blocks()))
        session(path, optimized=optimized)
        found.append([node.op_type for node in onnx.load(optimized).graph.node])
        assert "Sin" not in found[-1]
    assert found[0] == found[1]
    assert (tmp_path / "5.onnx").stat().st_size < (tmp_path / "32.onnx").stat().st_size


@pytest.mark.parametrize("lowering", [Dense(), Int8()], ids=lambda each: each.name)
def test_the_ort_format_has_the_same_answers(lowering: Dense | Int8, graph: Path, tmp_path: Path) -> None:
    artifact, source = fitted(graph, "4", tmp_path)
    path = tmp_path / "out.onnx"
    export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=lowering))
    written = write_ort(path, tmp_path / "out.ort")
    ids = {"ids": np.arange(12).reshape(3, 4) * 200}
    found, expected = (session(each).run(None, ids)[0] for each in (written.path, path))
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", [Precision.FLOAT16, Precision.INT8])
def test_a_table_is_gathered_packed_in_other_precisions_too(precision: Precision, graph: Path, tmp_path: Path) -> None:
    artifact, source = fitted(graph, "4", tmp_path)
    path = tmp_path / "out.onnx"
    done = export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=Dense(), precision=precision))
    assert sorted(done.spliced.runs.values()) == ["dense", "dense", "rows"]
    assert path.stat().st_size < sum(layer.stored_bytes for layer in artifact.layers) + 25_000


@pytest.mark.parametrize("codec", [integer(4, "matrix"), integer(4, "column"), SCALES], ids=lambda codec: codec.name)
def test_a_table_in_a_codec_that_nobody_asks_for_is_looked_up(codec: Codec, tmp_path: Path) -> None:
    operator = Operator(DenseForm(8, 20), {"weight": gaussian(20, 8)})
    layer = fitted_layer(operator)
    stored = StoredOperator(operator.form, {"weight": StoredArray.of(codec, operator.arrays["weight"])})
    model = layer_model(replace(layer, stored=stored), Rows())
    model.graph.inputs[0].type, model.graph.inputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape(["rows"])
    runtime = session(ir.serde.serialize_model(model).SerializeToString())
    (found,) = runtime.run(None, {"x": np.array([3, 19, 3])})
    np.testing.assert_allclose(found, stored.decoded().to_dense()[[3, 19, 3]].numpy(), rtol=1e-6)
