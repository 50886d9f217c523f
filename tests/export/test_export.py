"""Whole files: plain chains, given graphs, single layers, and what must not be written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from made import mlp
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, apply_artifact, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact, source_of
from spm_compress.errors import ArtifactError, ExportError, SourceError, VerificationError
from spm_compress.export import ExportSettings, export_layers
from spm_compress.export.graph import ACTIVATIONS
from spm_compress.export.splicing import matches
from spm_compress.export.splicing.matches import digest_of
from spm_compress.forms.lowering import Stages
from spm_compress.forms.spm.lowering.stages import StagesBody

QUICK = FitSettings(steps=10, block=8)


def fitted(path: Path) -> Artifact:
    return fit_model(open_source(path), CompressSettings(QUICK), beside=path.parent)


def run(path: Path, x: torch.Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh", "none"])
def test_a_plain_chain_is_exported_with_its_activation(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # two linears in a row (1, 2) have nothing between them; dropout (4) leaves a gap and one activation
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 40, bias=False), nn.Linear(40, 64), ACTIVATIONS[name]())
    model.append(nn.Dropout()).append(nn.Linear(64, 10)).eval()
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    artifact = fitted(path)
    exported = export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), activation=name)
    assert set(exported.spliced.nodes) == {"1.weight", "2.weight"}
    assert [agreement.batch for agreement in exported.agreements] == [1, 3, 16]
    apply_artifact(model, artifact)
    for batch in (1, 5):
        x = torch.randn(batch, 48)
        expected = model(x).detach().numpy()
        assert np.linalg.norm(run(exported.path, x) - expected) < 1e-5 * np.linalg.norm(expected)


def test_every_activation_has_a_choice_in_the_command_line() -> None:
    from spm_compress_cli.export import _ACTIVATIONS

    assert list(ACTIVATIONS) == _ACTIVATIONS


@pytest.mark.parametrize(
    "names", [["encoder.weight"], ["0.weight", "head.weight"], ["a.0.weight", "b.0.weight"], ["0.weight", "1.weight"]]
)
def test_any_other_state_dict_lists_the_ways_to_supply_a_graph(names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: torch.randn(96, 64) for name in names}, path)
    with pytest.raises(ExportError, match=r"`graph` dense\.onnx.*`export_layers`"):
        export_onnx(fitted(path), tmp_path / "out.onnx", source=open_source(path))
    assert not (tmp_path / "out.onnx").exists()


def test_a_given_graph_is_spliced_and_keeps_its_dynamic_axes(mlp_file: Path) -> None:
    artifact = fitted(mlp_file)
    folder = mlp_file.parent
    export_onnx(artifact, folder / "from_chain.onnx", source=open_source(mlp_file))
    model = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    from safetensors.torch import load_file

    model.load_state_dict(load_file(mlp_file))
    dense = torch.onnx.export(model, (torch.zeros(2, 96),), dynamo=True, dynamic_shapes=({0: "rows"},), verbose=False)
    assert dense is not None
    dense.save(folder / "dense.onnx")
    export_onnx(artifact, folder / "out.onnx", graph=folder / "dense.onnx")
    assert onnx.load(folder / "out.onnx").graph.input[0].type.tensor_type.shape.dim[0].dim_param == "rows"
    x = torch.randn(5, 96)
    np.testing.assert_allclose(run(folder / "out.onnx", x), run(folder / "from_chain.onnx", x), rtol=1e-4, atol=1e-5)


def test_single_layers_are_models_of_their_own(mlp_file: Path) -> None:
    artifact = fitted(mlp_file)
    written = export_layers(artifact, mlp_file.parent / "layers")
    assert [each.path.name for each in written] == ["0.weight.onnx", "2.weight.onnx"]
    x = torch.randn(3, 96)
    expected = x @ artifact.layers[0].operator.to_dense().T
    np.testing.assert_allclose(run(written[0].path, x), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_wrong_lowering_is_caught_and_leaves_no_file(mlp_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = StagesBody.mixed
    monkeypatch.setattr(StagesBody, "mixed", lambda self, i, stage, stride, state: right(self, i, stage, 1, state))
    before = set(mlp_file.parent.iterdir())
    with pytest.raises(VerificationError, match="differ by"):
        export_onnx(
            fitted(mlp_file),
            mlp_file.parent / "out.onnx",
            source=open_source(mlp_file),
            settings=ExportSettings(Stages()),
        )
    assert set(mlp_file.parent.iterdir()) == before


def test_a_source_that_is_gone_or_changed_is_noticed(mlp_file: Path) -> None:
    artifact, beside = fitted(mlp_file), mlp_file.parent / "model.spm.safetensors"
    assert source_of(artifact, beside).path.name == "model.safetensors"
    moved = mlp_file.rename(mlp_file.with_name("moved.safetensors"))
    with pytest.raises(ArtifactError, match="`source`"):
        source_of(artifact, beside)
    save_file({"0.weight": torch.zeros(64, 96)}, mlp_file)
    with pytest.raises(ArtifactError, match="changed since it was fitted"):
        source_of(artifact, beside)
    assert source_of(artifact, beside, moved).path == moved


def test_a_graph_that_keeps_data_outside_its_folder_is_refused(mlp_file: Path) -> None:
    folder = mlp_file.parent / "inner"
    folder.mkdir()
    (mlp_file.parent / "secret.bin").write_bytes(bytes(4 * 96 * 64))
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[96, 64])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", w]) for n, w in (("x", 96), ("y", 64)))
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [x], [y], [tensor])
    (folder / "g.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(SourceError, match="outside its folder"):
        export_onnx(fitted(mlp_file), folder / "out.onnx", graph=folder / "g.onnx")


def test_a_matrix_is_digested_once_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[bytes] = []

    def counted(matrix: np.ndarray) -> str:
        hashed.append(np.ascontiguousarray(matrix).tobytes())
        return digest_of(matrix)

    monkeypatch.setattr(matches, "digest_of", counted)
    path = tmp_path / "model.safetensors"
    save_file(mlp(40, 64, 48).state_dict(), path)
    source = open_source(path)
    artifact = fit_model(source, CompressSettings(FitSettings(stages=4, steps=2, block=8)), beside=tmp_path)
    export_onnx(artifact, tmp_path / "out.onnx", source=source)  # its lowerings timed, and several plans written
    assert len(hashed) == len(set(hashed))
    assert len(set(hashed)) >= 2


def test_the_default_export_is_made_of_gather_mul_add_whatever_runs_fastest(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(mlp(40, 64, 48).state_dict(), path)
    source = open_source(path)
    artifact = fit_model(source, CompressSettings(FitSettings(stages=4, steps=2, block=8)), beside=tmp_path)
    exported = export_onnx(artifact, tmp_path / "out.onnx", source=source)
    model = onnx.load(exported.path)
    functions = {function.name: function for function in model.functions}
    stages = [function for name, function in functions.items() if name.startswith("Stage")]
    assert stages
    for stage in stages:
        assert {node.op_type for node in stage.node} == {"Gather", "Mul", "Add"}
    called = {node.op_type for node in model.graph.node if node.domain == "spm_compress"}
    layers = [functions[name] for name in called if name.startswith("SPM_")]
    assert len(layers) == 4  # of two shapes, what is made at load and what is run
    for layer in layers:
        made = functions.get(f"{layer.name}_constants", layer)
        both = {node.op_type for node in (*layer.node, *made.node)}
        assert both & {"Stage", "StageWithDiagonal"}
