"""What a viewer of graphs shows: one node a layer under its name, with its numbers; functions that say what they do."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.forms.spm import Mixer

NETWORK = """
from collections import OrderedDict
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    layers = OrderedDict(
        widen=nn.Linear(64, 96), first=nn.ReLU(), mix=nn.Linear(96, 96), second=nn.ReLU(), narrow=nn.Linear(96, 48)
    )
    return nn.Sequential(layers).eval(), {"input": torch.zeros(2, 64)}
"""
LAYERS = {"widen": "96x64", "mix": "96x96", "narrow": "48x96"}


@pytest.fixture
def fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Artifact:
    (tmp_path / "network_of_names.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    fit = FitSettings(stages=6, block=8, steps=2)
    return fit_model(open_source(None, "network_of_names:build"), CompressSettings(fit), beside=tmp_path)


def exported(artifact: Artifact, lowering: str) -> onnx.ModelProto:
    source = open_source(None, "network_of_names:build")
    settings = ExportSettings(lowering=ExportSettings.named(lowering))
    return onnx.load(export_onnx(artifact, Path("out.onnx"), source=source, settings=settings).path)


@pytest.mark.parametrize("lowering", ["stages", "blocks", "dense"])
def test_every_layer_is_one_node_with_its_name_and_its_numbers(fitted: Artifact, lowering: str) -> None:
    model = exported(fitted, lowering)
    ours = [node for node in model.graph.node if node.op_type.startswith("SPM_")]
    calls = {node.name: node for node in ours if not node.op_type.endswith("_constants")}
    assert set(calls) == set(LAYERS)
    by_name = {layer.name: layer for layer in fitted.layers}
    for name, shape in LAYERS.items():
        layer, text = by_name[f"{name}.weight"], calls[name].doc_string
        assert f"{name}.weight: {shape}, run as {lowering}" in text
        assert "spm, stages 6, mixer general, gauge canonical" in text
        assert f"{layer.operator.parameter_count:,} numbers instead of {layer.shape[0] * layer.shape[1]:,}" in text
        assert f"error of the weight {layer.error:.3f}, of an SVD of equal size {layer.svd_error:.3f}" in text


@pytest.mark.parametrize("lowering", ["stages", "blocks", "dense"])
def test_functions_have_readable_ends_and_say_what_they_do(fitted: Artifact, lowering: str) -> None:
    model = exported(fitted, lowering)
    for function in model.functions:
        assert function.doc_string, function.name
        if not function.name.startswith("SPM_"):
            assert list(function.output) == ["y"]
            if function.name.startswith("Stage"):
                assert list(function.input)[:3] == ["x", "partner", "off_diagonal"]
                assert "+ off_diagonal * x[partner]" in function.doc_string
            continue
        takes_x = lowering != "dense"
        stored = ["off_diagonal", "scales"]
        made = ["blocks_0", "blocks_1"] if lowering != "stages" else stored
        if function.name.endswith("_constants"):
            assert list(function.input) == stored
            assert list(function.output) == [f"{name}_made" for name in made]
        else:
            assert list(function.input) == ["x"] * takes_x + made
            assert list(function.output) == (["y"] if takes_x else ["matrix"])
        strides = "4, 2, 1" if function.name.startswith("SPM_48x96") else "1, 2, 4"
        assert f"6 stages on 96 features, strides {strides} | {strides}\n" in function.doc_string
        assert "a stage: x' = x + off_diagonal * x[partner]" in function.doc_string


def test_what_stands_around_a_layer_is_named_after_it(fitted: Artifact) -> None:
    model = exported(fitted, "blocks")
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert {"widen.features_first", "narrow.features_last", "mix.bias"} <= set(names)
    values = {value for node in model.graph.node for value in node.output}
    assert {"widen.spm.x", "widen.spm.y", "mix.spm.y", "narrow.spm.y"} <= values


def test_two_chains_and_a_low_rank_term_are_told_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file(nn.Sequential(OrderedDict([("0", nn.Linear(64, 128))])).state_dict(), path)
    fit = FitSettings(stages=9, block=8, steps=2, mixer=Mixer.GENERAL, rank=2)
    artifact = fit_model(open_source(path), CompressSettings(fit), beside=tmp_path)
    settings = ExportSettings(lowering=ExportSettings.named("stages"))
    found = export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path), settings=settings)
    model = onnx.load(found.path)
    made, function = sorted(
        (each for each in model.functions if each.name.startswith("SUM_")), key=lambda f: -len(f.name)
    )
    stored = ["off_diagonal_0_0", "off_diagonal_0_1", "scales", "left", "right"]
    assert list(made.input) == stored
    assert list(function.input) == ["x", *stored]
    assert "plus left (right x) of rank 2" in function.doc_string
    (call,) = [node for node in model.graph.node if node.op_type == function.name]
    assert "sum, stages 9, mixer general, gauge canonical, rank 2" in call.doc_string
