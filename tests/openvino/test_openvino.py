"""Every lowering on ONNX Runtime's OpenVINO provider, with nothing left to the CPU provider.

Run by `make test-openvino`: onnxruntime-openvino replaces onnxruntime, so the two need an environment each.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from draw import STAGES, laid_out, random_operator
from made import layer_as_it_is
from safetensors.torch import load_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, apply_artifact, export_onnx, fit_model, open_source
from spm_compress.checkpoint import FittedLayer
from spm_compress.codecs import parse_bits
from spm_compress.export import ExportSettings
from spm_compress.export.splicing.layer_model import OPSET
from spm_compress.export.splicing.matches import digest_of
from spm_compress.export.splicing.splice import splice
from spm_compress.forms import Operator, StoredOperator
from spm_compress.forms.dense import Dense
from spm_compress.forms.lowering import Dense as Made
from spm_compress.forms.lowering import Lowering, lowerings
from spm_compress.forms.spm import Gauge, Mixer

PROVIDER = "OpenVINOExecutionProvider"
# As for the CPU provider; what is seen here is at most 2e-7.
TOLERANCE = 1e-5
SHAPES = {
    "square": (384, 384),
    "widening": (1536, 384),
    "narrowing": (384, 1536),
    "odd": (37, 33),
    "narrowing to no divisor": (48, 100),
}

every_lowering = pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)


def on_openvino(model: bytes, inputs: list[np.ndarray], profile: Path) -> list[np.ndarray]:
    """Run a model of one input and one output; fails unless OpenVINO runs all of it."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.enable_profiling = True
    options.profile_file_prefix = str(profile)
    session = onnxruntime.InferenceSession(model, options, providers=[PROVIDER])
    assert session.get_providers()[0] == PROVIDER
    name = session.get_inputs()[0].name
    outputs = [np.asarray(session.run(None, {name: x})[0]) for x in inputs]
    events = json.loads(Path(session.end_profiling()).read_text())
    ran_on = [event["args"]["provider"] for event in events if event["name"].endswith("_kernel_time")]
    assert len(ran_on) >= len(inputs)
    assert set(ran_on) == {PROVIDER}
    return outputs


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def exported(operator: Operator, lowering: Lowering, lead: list[str]) -> bytes:
    """As `in_graph`, of an operator as it is."""
    return in_graph(layer_as_it_is(operator), lowering, lead)


def in_graph(layer: FittedLayer, lowering: Lowering, lead: list[str]) -> bytes:
    """Return y (*lead, out) = x (*lead, in) times a dense weight, which the layer has replaced."""
    out, into = layer.shape
    weight = np.random.default_rng(1).standard_normal((out, into)).astype(np.float32)
    stored = ir.Value(name="weight", const_value=ir.tensor(weight.T, name="weight"))
    float32 = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=float32, shape=ir.Shape([*lead, into]))
    y = ir.Value(name="y", type=float32, shape=ir.Shape([*lead, out]))
    node = ir.Node("", "MatMul", [x, stored], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[stored], opset_imports={"": OPSET}, name="layer")
    model = ir.Model(graph, ir_version=9)
    layer = replace(layer, sha256=digest_of(weight))
    splice(model, [layer], {layer.name: lowering})
    return ir.serde.serialize_model(model).SerializeToString()


def test_a_node_that_openvino_lacks_is_noticed(tmp_path: Path) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows"]))
    node = ir.Node("", "Unique", [x])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": OPSET}, name="unique")
    model = ir.serde.serialize_model(ir.Model(graph, ir_version=9)).SerializeToString()
    with pytest.raises(Exception, match="fallback to CPU EP has been explicitly disabled"):
        on_openvino(model, [], tmp_path / "profile")


@every_lowering
@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: f"{kind[0].value} {kind[1].value}")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_openvino_computes_a_layer(
    shape: tuple[int, int], kind: tuple[Mixer, Gauge], lowering: Lowering, tmp_path: Path
) -> None:
    operator = random_operator(laid_out(shape[1], shape[0], *kind, stages=10), dtype=torch.float32)
    dense = operator.to(torch.float64).to_dense().numpy()
    generator = np.random.default_rng(0)
    for lead, sizes in ((["rows"], [(1,), (5,), (64,)]), (["batch", "sequence"], [(1, 1), (2, 7)])):
        inputs = [generator.standard_normal((*size, shape[1])).astype(np.float32) for size in sizes]
        outputs = on_openvino(exported(operator, lowering, lead), inputs, tmp_path / "profile")
        for x, found in zip(inputs, outputs, strict=True):
            assert relative_error(found, x.astype(np.float64) @ dense.T) < TOLERANCE


@pytest.mark.parametrize("bits", ["8", "5", "4", "4/32", "3", "2", "1.6", "1"])
def test_openvino_unpacks_few_bits(bits: str, tmp_path: Path) -> None:
    codec, generator = parse_bits(bits), torch.Generator().manual_seed(0)
    stored = [(Operator(Dense(96, 64), {"weight": torch.randn(64, 96, generator=generator)}), Made())]
    if bits in ("8", "5", "4"):
        stages = random_operator(laid_out(96, 64, Mixer.GENERAL, Gauge.FREE, stages=10), dtype=torch.float32)
        stored += [(stages, lowering) for lowering in lowerings()]
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    for operator, lowering in stored:
        layer = replace(layer_as_it_is(operator), stored=StoredOperator.of(operator, codec))
        (found,) = on_openvino(in_graph(layer, lowering, ["rows"]), [x], tmp_path / "profile")
        matrix = layer.operator.to(torch.float64).to_dense().numpy()
        assert relative_error(found, x.astype(np.float64) @ matrix.T) < TOLERANCE


@every_lowering
def test_openvino_computes_a_whole_model(lowering: Lowering, mlp_file: Path) -> None:
    settings = CompressSettings(FitSettings(steps=10, block=8))
    artifact = fit_model(open_source(mlp_file), settings, beside=mlp_file.parent)
    path = mlp_file.parent / "out.onnx"
    export_onnx(artifact, path, source=open_source(mlp_file), settings=ExportSettings(lowering))
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    model.load_state_dict(load_file(mlp_file))
    apply_artifact(model, artifact)
    x = torch.randn(9, 96, generator=torch.Generator().manual_seed(0))
    (found,) = on_openvino(path.read_bytes(), [x.numpy()], mlp_file.parent / "profile")
    assert relative_error(found, model(x).detach().numpy()) < TOLERANCE
