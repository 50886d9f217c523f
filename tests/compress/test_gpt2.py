"""GPT-2, whose layers hold their weights the other way, and names that LoRA's wrappers leave."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

from spm_compress import (
    CompressSettings,
    FitSettings,
    SPMLinear,
    apply_artifact,
    compress_model,
    expand,
    export_onnx,
    fit_model,
    load,
    open_source,
    save,
    write_artifact,
)
from spm_compress.checkpoint.huggingface import member_of

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT-2 as transformers saves it; its head is tied to the embedding."""
    config = transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=32, vocab_size=100)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("gpt2")
    transformers.GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def artifact_path(folder: Path) -> Path:
    settings = CompressSettings(FitSettings(stages=6, steps=20))
    path = folder / "model.spm.safetensors"
    write_artifact(fit_model(open_source(folder), settings, beside=folder), path)
    return path


def test_weights_are_read_as_linear_layers_have_them(folder: Path) -> None:
    source = open_source(folder)
    names = [name for name in source.tensors() if name in source.input_first]
    assert len(names) == 8
    assert source.tensors()["transformer.h.0.attn.c_attn.weight"].shape == (192, 64)
    stored = load_file(folder / "model.safetensors")
    for name in names:
        assert torch.equal(source.read(name), stored[name].T)


def test_it_is_loaded_run_and_saved_again(folder: Path, artifact_path: Path) -> None:
    model = load(artifact_path)
    replaced = [name for name, module in model.named_modules() if isinstance(module, SPMLinear)]
    assert len(replaced) == 8
    assert model.get_submodule("lm_head").weight is model.get_submodule("transformer.wte").weight
    tokens = torch.arange(10)[None]
    dense = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        before = model(tokens).logits
        # The same computed by transformers' own layers, with the operators' matrices in them.
        for name in replaced:
            dense.get_submodule(name).weight.copy_(model.get_submodule(name).operator().to_dense().T)
        torch.testing.assert_close(before, dense(tokens).logits, rtol=1e-4, atol=1e-4)
        for parameter in model.get_submodule("transformer.h.0.attn.c_attn").parameters():
            parameter.add_(0.01)
    again = artifact_path.with_name("again.spm.safetensors")
    save(model, again, like=artifact_path)
    with torch.no_grad():
        torch.testing.assert_close(load(again)(tokens).logits, model(tokens).logits, rtol=1e-3, atol=1e-3)


def test_expanded_it_is_what_transformers_loads(folder: Path, artifact_path: Path) -> None:
    from spm_compress.checkpoint import read_artifact

    tensors = expand(read_artifact(artifact_path)).tensors
    stored = load_file(folder / "model.safetensors")
    assert {name: x.shape for name, x in tensors.items()} == {name: x.shape for name, x in stored.items()}
    nothing = fit_model(open_source(folder), CompressSettings(exclude=("*",)), beside=folder)
    for name, x in expand(nothing).tensors.items():
        assert torch.equal(x, stored[name])


def test_a_model_that_is_loaded_already_takes_the_layers(folder: Path, artifact_path: Path) -> None:
    from spm_compress.checkpoint import read_artifact

    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    apply_artifact(model, read_artifact(artifact_path))
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, load(artifact_path)(tokens).logits)
    fresh = transformers.GPT2LMHeadModel.from_pretrained(folder)
    assert len(compress_model(fresh, 6, settings=FitSettings(stages=6, steps=2)).replaced) == 8


def test_it_is_calibrated_and_exported(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "tokens.npz"
    np.savez(data, input_ids=np.random.default_rng(0).integers(0, 100, (16, 12)))
    settings = CompressSettings(FitSettings(stages=6, steps=20), include=("*.h.0.*",))
    artifact = fit_model(open_source(folder), settings, beside=tmp_path, data=data)
    assert len(artifact.layers) == 4
    assert all(layer.output_error is not None and layer.output_error < 1 for layer in artifact.layers)
    path = tmp_path / "out.onnx"
    export_onnx(artifact, path, source=open_source(folder))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    tokens = torch.arange(20).reshape(2, 10)
    inputs = {
        each.name: tokens.numpy() if each.name == "input_ids" else np.ones((2, 10), np.int64)
        for each in session.get_inputs()
    }
    found = session.run(["logits"], inputs)[0]
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    apply_artifact(model, artifact)
    with torch.no_grad():
        np.testing.assert_allclose(found, model(tokens).logits.numpy(), atol=1e-4)


def test_names_that_lora_leaves_are_found() -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"query": torch.nn.Linear(2, 2)})})
    modules = dict(model.named_modules())
    for name in ("encoder.query", "base_model.model.encoder.query", "base_model.model.encoder.query.base_layer"):
        assert member_of(name, model, modules) == "encoder.query"
    assert member_of("encoder.key", model, modules) is None
