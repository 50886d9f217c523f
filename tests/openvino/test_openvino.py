"""Every lowering on ONNX Runtime's OpenVINO provider, with nothing left to the CPU provider.

Run by `make test-openvino`: onnxruntime-openvino takes the place of onnxruntime, so it has an environment of its own,
where what is written here is run.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from draw import STAGES, laid_out, random_operator
from environments import OPENVINO, Ran, python_of, relative_error, run_models
from made import layer_as_it_is, mlp
from safetensors.torch import load_file

from spm_compress import CompressSettings, FitSettings, apply_artifact, export_onnx, fit_model, open_source
from spm_compress.export import ExportSettings
from spm_compress.export.splicing.layer_model import OPSET
from spm_compress.export.splicing.matches import digest_of
from spm_compress.export.splicing.splice import splice
from spm_compress.forms import Operator
from spm_compress.forms.lowering import Lowering, lowerings
from spm_compress.forms.spm import Gauge, Mixer

# As for the CPU provider; what is seen here is at most 2e-7.
TOLERANCE = 1e-5
SHAPES = {
    "square": (384, 384),
    "widening": (1536, 384),
    "narrowing": (384, 1536),
    "odd": (37, 33),
    "narrowing to no divisor": (48, 100),
}
LEADS = {"rows": [(1,), (5,), (64,)], "batch sequence": [(1, 1), (2, 7)]}


def layer_graph(operator: Operator, lowering: Lowering, lead: list[str]) -> ir.Model:
    """Return y (*lead, out) = x (*lead, in) times a dense weight, which the operator has replaced."""
    layer = layer_as_it_is(operator)
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
    return model


def ran_alone(folder: Path) -> Ran:
    """Run the models of a folder on OpenVINO alone."""
    return run_models(python_of("OPENVINO_PYTHON"), folder, folder / "answers", provider=OPENVINO)


def test_a_node_that_openvino_lacks_is_noticed(tmp_path: Path) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows"]))
    node = ir.Node("", "Unique", [x])
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": OPSET}, name="unique")
    ir.save(ir.Model(graph, ir_version=9), tmp_path / "unique.onnx")
    np.savez(tmp_path / "unique.npz", x=np.zeros(3, np.float32))
    assert "fallback to CPU EP has been explicitly disabled" in ran_alone(tmp_path).errors["unique"]


@pytest.mark.parametrize("kind", STAGES, ids=lambda kind: f"{kind[0].value} {kind[1].value}")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_openvino_computes_a_layer_in_every_lowering(
    shape: tuple[int, int], kind: tuple[Mixer, Gauge], tmp_path: Path
) -> None:
    out, into = shape
    operator = random_operator(laid_out(into, out, *kind, stages=10), dtype=torch.float32)
    dense = operator.to(torch.float64).to_dense().numpy()
    generator = np.random.default_rng(0)
    given = {}
    for lead, sizes in LEADS.items():
        inputs = {str(size): generator.standard_normal((*size, into)).astype(np.float32) for size in sizes}
        for lowering in lowerings():
            given[f"{lowering.name}, {lead}"] = inputs
            np.savez(tmp_path / f"{lowering.name}, {lead}.npz", **inputs)
            ir.save(layer_graph(operator, lowering, lead.split()), tmp_path / f"{lowering.name}, {lead}.onnx")
    ran = ran_alone(tmp_path)
    assert ran.errors == {}
    assert ran.answers.keys() == given.keys()
    for name, answers in ran.answers.items():
        for size, x in given[name].items():
            assert relative_error(answers[size], x.astype(np.float64) @ dense.T) < TOLERANCE, (name, size)


def test_openvino_computes_a_whole_model_in_every_lowering(mlp_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    artifact = fit_model(
        open_source(mlp_file), CompressSettings(FitSettings(steps=10, block=8)), beside=mlp_file.parent
    )
    model = mlp(96, 64, 64, 10)
    model.load_state_dict(load_file(mlp_file))
    apply_artifact(model, artifact)
    x = torch.randn(9, 96, generator=torch.Generator().manual_seed(0))
    for lowering in lowerings():
        path = folder / f"{lowering.name}.onnx"
        export_onnx(artifact, path, source=open_source(mlp_file), settings=ExportSettings(lowering))
        np.savez(path.with_suffix(".npz"), x=x.numpy())
    ran = ran_alone(folder)
    assert ran.errors == {}
    assert ran.answers.keys() == {lowering.name for lowering in lowerings()}
    for name, answers in ran.answers.items():
        assert relative_error(answers["x"], model(x).detach().numpy()) < TOLERANCE, name
