"""Nothing that is made of stored numbers passes the limit of ONNX Runtime's folding: it would be made at every run.

The limit is lowered, in this program and in ONNX Runtime, which then says itself what it does not fold.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import fitted_layer, gaussian, token_graph
from safetensors.torch import save_file
from torch import Tensor, nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import FittedLayer
from spm_compress.codecs import BLOCKS, Codec, StoredArray, codecs, parse_bits
from spm_compress.errors import ExportError
from spm_compress.export import Precision
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.forms import Form, Operator, StoredOperator, folding
from spm_compress.forms.dense import Dense as DenseForm
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.lowering import Blocks, Dense, Int8, Layout, Lowering, NBits, Stages, lowerings
from spm_compress.forms.monarch import Monarch
from spm_compress.forms.spm import build_spm
from spm_compress.forms.sum import Sum

LIMIT = 16 << 10
BITS = ["32", "16", "8", "7", "5", "4", "4/32", "3", "2", "1.6", "1"]
# Sums of a few hundred float32; activations of 8 bits and levels of 7 on Gaussian numbers.
EXACT, ROUNDED = 1e-5, 0.03
AT_RUN_TIME = {"MatMul", "FusedMatMul", "DynamicQuantizeMatMul", "DynamicQuantizeLinear", "MatMulIntegerToFloat"}
ORDER_ONLY = {"Concat", "Transpose", "Reshape", "Flatten"}


@pytest.fixture(autouse=True)
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_LIMIT", LIMIT)


def layer_of(form: Form, bits: str = "4") -> FittedLayer:
    arrays = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(form.shapes.items())}
    operator = Operator(form, arrays)
    return replace(fitted_layer(operator), stored=StoredOperator.of(operator, parse_bits(bits)))


def opened(
    model: ir.Model | Path, folder: Path, limit: int = LIMIT
) -> tuple[onnxruntime.InferenceSession, Counter[str]]:
    """Return a session of a runtime that folds as much as `limit`, and the nodes that it runs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(limit))
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    content = ir.serde.serialize_model(model).SerializeToString() if isinstance(model, ir.Model) else str(model)
    runtime = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return runtime, Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


def require_right(layer: FittedLayer, lowering: Lowering, folder: Path, tolerance: float = EXACT) -> Counter[str]:
    """Compare a layer with the decoded matrix; return the nodes that run."""
    runtime, nodes = opened(layer_model(layer, lowering), folder)
    x = gaussian(5, layer.shape[1]).numpy()
    (found,) = runtime.run(None, {"x": x})
    expected = x.astype(np.float64) @ layer.operator.to_dense().double().numpy().T
    assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
    return nodes


@pytest.mark.parametrize(
    "lowering", [Dense(), Blocks(), Stages(Layout.BATCH_MAJOR), Int8()], ids=lambda each: each.name
)
@pytest.mark.parametrize("bits", BITS)
def test_a_large_map_is_unpacked_in_pieces_at_load(bits: str, lowering: Lowering, tmp_path: Path) -> None:
    layer = layer_of(DenseForm(96, 150), bits)
    if isinstance(lowering, Int8) and not parse_bits(bits).name.startswith(("integer", "ternary", "sign")):
        return
    nodes = require_right(layer, lowering, tmp_path, ROUNDED if isinstance(lowering, Int8) else EXACT)
    assert set(nodes) <= AT_RUN_TIME | ORDER_ONLY
    assert sum(nodes[name] for name in AT_RUN_TIME - {"DynamicQuantizeLinear"}) == 4  # 57,600 bytes, 16,384 at most
    assert nodes["Concat"] == 1


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(out=st.integers(1, 90), into=st.integers(1, 90), bits=st.sampled_from(BITS), limit=st.integers(800, 1 << 14))
def test_pieces_are_the_map_and_within_the_limit(out: int, into: int, bits: str, limit: int, tmp_path: Path) -> None:
    """Whatever the limit: a row of 90 numbers fits into it."""
    into = into if "/" not in bits else 32 * (1 + into % 3)
    layer = layer_of(DenseForm(into, out), bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "_LIMIT", limit)
        model = layer_model(layer, Dense())
    runtime, nodes = opened(model, tmp_path, limit)
    assert set(nodes) <= {"MatMul", "FusedMatMul", "Concat"}
    x = gaussian(3, into).numpy()
    (found,) = runtime.run(None, {"x": x})
    expected = x.astype(np.float64) @ layer.operator.to_dense().double().numpy().T
    assert np.linalg.norm(found - expected) <= EXACT * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "codec", [each for each in codecs().values() if each.fits((9, 128))], ids=lambda each: each.name
)
def test_rows_of_a_stored_matrix_decode_to_its_rows(codec: Codec) -> None:
    array = StoredArray.of(codec, gaussian(9, 128))
    for start, stop in ((0, 9), (0, 1), (2, 7), (8, 9)):
        assert array.rows(start, stop).decoded().equal(array.decoded()[start:stop])


@pytest.mark.parametrize("layout", [Layout.FEATURE_MAJOR, Layout.BATCH_MAJOR])
@pytest.mark.parametrize("bits", ["32", "16", "4"])
@pytest.mark.parametrize(
    "make",
    [lambda: LowRank(200, 300, 40), lambda: Sum((build_spm(200, 300, stages=2), LowRank(200, 300, 40)))],
    ids=["low rank", "sum"],
)
def test_large_factors_come_in_pieces(make: object, bits: str, layout: Layout, tmp_path: Path) -> None:
    form: Form = make()  # type: ignore[operator]
    nodes = require_right(layer_of(form, bits), Blocks(layout), tmp_path)
    assert not set(nodes) & {"Cast", "Floor", "Mul", "Sin", "Cos", "Slice", "Split"}


def test_layers_that_are_alike_stay_within_the_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty of 16,384 bytes each are made four at a time, or three where unpacking takes a little room."""
    monkeypatch.setattr(folding, "_LIMIT", 16 * LIMIT)
    weights = {f"{2 * i}.weight": gaussian(64, 64, seed=i) for i in range(20)}
    save_file(weights, tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    dense = CompressSettings(FitSettings(), include=("none",), dense=parse_bits("4"))
    stages = CompressSettings(FitSettings(stages=10, steps=0))
    for chosen, lowering, calls in ((dense, Dense(), 7), (stages, Blocks(), 5)):
        artifact = fit_model(source, chosen, beside=tmp_path)
        path = tmp_path / "out.onnx"
        export_onnx(artifact, path, source=source, settings=ExportSettings(lowering=lowering))
        _, nodes = opened(path, tmp_path, 16 * LIMIT)
        assert not set(nodes) & {"Split", "Cast", "Mul", "Floor", "Sin"}
        made = [node.op_type for node in onnx.load(path).graph.node if node.op_type.endswith("_constants")]
        assert len(made) == calls


@pytest.mark.parametrize(
    "form", [build_spm(96, 96, stages=5), LowRank(96, 96, 4), Monarch(96, 96, 8, 8)], ids=lambda each: each.kind
)
def test_a_matrix_that_cannot_be_made_is_refused_by_name_and_not_offered(form: Form, tmp_path: Path) -> None:
    layer = layer_of(form, "32")
    with pytest.raises(
        ExportError, match=r"^layer\.weight: its matrix takes 0\.0\d GiB, .* another `lowering`, .*`exclude`$"
    ):
        layer_model(layer, Dense())
    offered = folding.foldable(form, form.lowerings(layer.stored.codecs))
    assert set(offered) == {each for each in lowerings() if not isinstance(each, Dense)}
    for lowering in offered:
        require_right(layer, lowering, tmp_path)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.sampled_from([(64, 64), (48, 100), (100, 48), (33, 20), (64, 256), (256, 64)]),
    stages=st.integers(1, 40),
    lowering=st.sampled_from(lowerings()),
    bits=st.sampled_from(["32", "5"]),
    power=st.integers(10, 17),
)
def test_what_is_offered_is_folded(
    shape: tuple[int, int], stages: int, lowering: Lowering, bits: str, power: int, tmp_path: Path
) -> None:
    """Under any limit a lowering is not offered, or the same nodes run as without one."""
    form = layer_of(build_spm(shape[1], shape[0], stages=stages), bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folding, "_LIMIT", 1 << power)
        if lowering not in folding.foldable(form.form, [lowering]):
            return
        model = layer_model(form, lowering)
    assert opened(model, tmp_path, 1 << power)[1] == opened(model, tmp_path, 0)[1]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(400, 64), nn.Linear(64, 400, bias=True)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))  # type: ignore[no-any-return]


@pytest.mark.parametrize("lowering", ["auto", "dense"])
def test_a_large_table_is_gathered_packed_and_its_head_multiplied_in_pieces(lowering: str, tmp_path: Path) -> None:
    source = open_source(token_graph(Tied(), tmp_path / "dense.onnx"))
    chosen = CompressSettings(FitSettings(), include=("none",), table=parse_bits("4"))
    artifact = fit_model(source, chosen, beside=tmp_path)
    wanted = ExportSettings(lowering=ExportSettings.named(lowering), rounds_activations=False)
    done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=wanted)
    assert max(each.error for each in done.agreements) < EXACT
    assert sorted(done.spliced.runs.values()) == ["dense", "rows"]
    _, nodes = opened(tmp_path / "out.onnx", tmp_path)
    assert nodes["MatMul"] + nodes["FusedMatMul"] == 8  # 102,400 bytes, and a little room to unpack


def test_pieces_are_written_in_float16_too(tmp_path: Path) -> None:
    source = open_source(token_graph(Tied(), tmp_path / "dense.onnx"))
    chosen = CompressSettings(FitSettings(), include=("none",), table=parse_bits("4"))
    artifact = fit_model(source, chosen, beside=tmp_path)
    wanted = ExportSettings(lowering=Dense(), precision=Precision.FLOAT16)
    done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=wanted)
    assert max(each.error for each in done.agreements) < 2e-3
    _, nodes = opened(tmp_path / "out.onnx", tmp_path)
    assert nodes["MatMul"] + nodes["FusedMatMul"] == 8


def test_auto_takes_what_is_left_where_the_matrix_is_too_large(tmp_path: Path) -> None:
    save_file({"0.weight": gaussian(96, 96), "2.weight": gaussian(96, 96, seed=1)}, tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    artifact = fit_model(source, CompressSettings(FitSettings(stages=5, steps=0)), beside=tmp_path)
    done = export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(threads=1))
    assert len(done.choices) == 2
    for choice in done.choices:
        assert "dense" not in choice.microseconds
        assert choice.reason == "its matrix is too large to be made at load"
    assert set(opened(tmp_path / "out.onnx", tmp_path)[1]).isdisjoint({"ConstantOfShape", "Split"})


def test_what_needs_a_large_map_whole_is_refused(tmp_path: Path) -> None:
    """E stands on the left, where its rows are none of the outputs' features."""
    node = onnx.helper.make_node("MatMul", ["weight", "x"], ["y"])
    weight = onnx.numpy_helper.from_array(gaussian(150, 96).numpy(), "weight")
    x, y = (onnx.helper.make_tensor_value_info(name, 1, [size, "n"]) for name, size in (("x", 96), ("y", 150)))
    graph = onnx.helper.make_graph([node], "g", [x], [y], [weight])
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9),
        tmp_path / "dense.onnx",
    )
    source = open_source(tmp_path / "dense.onnx")
    artifact = fit_model(
        source, CompressSettings(FitSettings(), include=("none",), dense=parse_bits("4")), beside=tmp_path
    )
    with pytest.raises(ExportError, match="weight: its matrix takes"):
        export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(lowering=Dense()))
    assert not (tmp_path / "out.onnx").exists()


def test_four_bits_in_memory_need_no_pieces(tmp_path: Path) -> None:
    nodes = require_right(layer_of(DenseForm(BLOCKS[-1], 256), "4"), NBits(), tmp_path, ROUNDED)
    assert nodes == {"MatMulNBits": 1}
