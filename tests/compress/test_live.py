"""A compressed model as a live module, saved again, and expanded to dense tensors."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import spm_compress
from spm_compress import (
    CompressSettings,
    FitSettings,
    SPMLinear,
    apply_artifact,
    fit_model,
    open_source,
    read_artifact,
    write_artifact,
)
from spm_compress.checkpoint import KeptTensor, Source, write_tensors
from spm_compress.checkpoint.huggingface import load_huggingface
from spm_compress.codecs import FLOAT16
from spm_compress.errors import ArtifactError, UsageError
from spm_compress.report import summarize

IDS = torch.randint(5, 30, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def source(bert: Path) -> Source:
    return open_source(bert)


@pytest.fixture
def path(source: Source, texts: Path, tmp_path: Path) -> Path:
    """An artifact of a small BERT, fitted with calibration data and so with bias corrections."""
    settings = CompressSettings(fit=FitSettings(stages=4, block=8, steps=10), include=("encoder.*",))
    write_artifact(fit_model(source, settings, beside=tmp_path, data=texts), tmp_path / "bert.spm.safetensors")
    return tmp_path / "bert.spm.safetensors"


def answer(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).last_hidden_state


def test_one_call_makes_a_model_that_trains_and_is_saved_again(path: Path) -> None:
    model = spm_compress.load(path)
    assert sum(isinstance(module, SPMLinear) for module in model.modules()) == 12
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=IDS).last_hidden_state.square().mean().backward()
    optimizer.step()
    folder = path.parent / "elsewhere"
    folder.mkdir()
    saved = folder / "trained.spm.safetensors"
    spm_compress.save(model, saved, like=path)
    torch.testing.assert_close(answer(spm_compress.load(saved)), answer(model), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(answer(spm_compress.load(path)), answer(model), atol=1e-2)
    assert "trained further after its fit" in summarize(read_artifact(saved), saved).verdict


def test_saving_an_untrained_model_changes_nothing_but_rounding(path: Path) -> None:
    spm_compress.save(spm_compress.load(path), path.with_name("again.spm.safetensors"), like=path)
    before, after = read_artifact(path), read_artifact(path.with_name("again.spm.safetensors"))
    for old, new in zip(before.layers, after.layers, strict=True):
        torch.testing.assert_close(new.operator.to_dense(), old.operator.to_dense(), rtol=1e-4, atol=1e-5)
        assert new.error == pytest.approx(old.error, abs=1e-5)


def test_a_model_of_something_else_is_not_saved(path: Path, source: Source) -> None:
    with pytest.raises(ArtifactError, match=r"encoder.*weight: the model has no SPMLinear of shape"):
        spm_compress.save(load_huggingface(source), path.with_name("x.spm.safetensors"), like=path)
    assert not path.with_name("x.spm.safetensors").exists()


def test_expanded_tensors_are_the_compressed_model(path: Path, source: Source, bert: Path, tmp_path: Path) -> None:
    found = spm_compress.expand(read_artifact(path))
    original = {name: source.read(name) for name in source.tensors()}
    assert {name: (x.shape, x.dtype) for name, x in found.tensors.items()} == {
        name: (x.shape, x.dtype) for name, x in original.items()
    }
    assert found.lost == ()
    touched = {name for layer in read_artifact(path).layers for name in (layer.name, layer.name[:-6] + "bias")}
    for name, tensor in original.items():
        assert torch.equal(found.tensors[name], tensor) == (name not in touched)
    folder = tmp_path / "dense"
    folder.mkdir()
    (folder / "config.json").write_text((bert / "config.json").read_text())
    write_tensors(found.tensors, folder / "model.safetensors")
    dense = load_huggingface(open_source(folder))
    torch.testing.assert_close(answer(dense), answer(spm_compress.load(path)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_fit_of_nothing_expands_to_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {"a.weight": torch.randn(40, 50, generator=draw).to(dtype), "steps": torch.tensor([3, 5])}
    tensors["b.weight"] = torch.randn(64, 48, generator=draw).to(dtype)
    write_tensors(tensors, tmp_path / "model.safetensors")
    source = open_source(tmp_path / "model.safetensors")
    settings = CompressSettings(fit=FitSettings(stages=2, steps=2), include=("b.*",))
    artifact = fit_model(source, settings, beside=tmp_path)
    everything = tuple(KeptTensor(name, tuple(x.shape), "", x.nbytes, "") for name, x in tensors.items())
    write_artifact(replace(artifact, layers=(), kept=everything, tensors=tensors), tmp_path / "none.spm.safetensors")
    write_tensors(
        spm_compress.expand(read_artifact(tmp_path / "none.spm.safetensors")).tensors, tmp_path / "out.safetensors"
    )
    for name, tensor in load_file(tmp_path / "out.safetensors").items():
        assert tensor.dtype == tensors[name].dtype
        assert torch.equal(tensor.view(torch.uint8), tensors[name].view(torch.uint8))


def test_a_bias_correction_without_a_bias_is_named_and_onnx_is_refused(path: Path) -> None:
    artifact = read_artifact(path)
    name = artifact.layers[0].name
    bias = name.removesuffix("weight") + "bias"
    without = replace(artifact, tensors={each: x for each, x in artifact.tensors.items() if each != bias})
    assert spm_compress.expand(without).lost == (name,)
    with pytest.raises(UsageError, match="of an ONNX model; write a dense one with"):
        spm_compress.expand(replace(artifact, source={"path": "model.onnx", "files": {}}))


def test_why_a_codec_was_refused_is_known_after_training_too(tmp_path: Path) -> None:
    """Numbers that float16 cannot hold, in a model that is loaded and saved again."""
    weight = 1e6 * torch.eye(64)
    save_file({"a.weight": weight, "a.bias": torch.zeros(64)}, tmp_path / "model.safetensors")
    settings = CompressSettings(FitSettings(forms=("dense",), store=FLOAT16))
    path, again = tmp_path / "model.spm.safetensors", tmp_path / "again.spm.safetensors"
    write_artifact(fit_model(open_source(tmp_path / "model.safetensors"), settings, beside=tmp_path), path)
    model = nn.Sequential(OrderedDict(a=nn.Linear(64, 64)))
    apply_artifact(model, read_artifact(path))
    spm_compress.save(model, again, like=path)
    (before,), (after,) = read_artifact(path).layers, read_artifact(again).layers
    assert before.reason == after.reason == "float16 cannot hold the numbers; stored in float32"
    with torch.no_grad():
        model.a.arrays["weight"].mul_(1e-3)  # and is gone where it has become wrong
    spm_compress.save(model, again, like=path)
    (after,) = read_artifact(again).layers
    assert after.reason is None
    assert after.stored.codec == FLOAT16
