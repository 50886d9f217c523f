"""Live modules: feedforward, recurrent, attention; shared and tied layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spm_compress import (
    CompressSettings,
    FitSettings,
    SPMLinear,
    apply_artifact,
    compress_model,
    fit_model,
    open_source,
)
from spm_compress.errors import ArtifactError, SourceError, UsageError

QUICK = FitSettings(steps=10, block=8)


class GRUCell(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.input, self.state = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        (rx, zx, nx), (rh, zh, nh) = self.input(x).chunk(3, -1), self.state(h).chunk(3, -1)
        z = torch.sigmoid(zx + zh)
        return (1 - z) * torch.tanh(nx + torch.sigmoid(rx + rh) * nh) + z * h


def test_feedforward_recurrent_and_attention_code_runs_and_trains() -> None:
    cases: list[tuple[nn.Module, tuple[Tensor, ...], set[str]]] = [
        (nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)), (torch.randn(3, 64),), {"0", "2"}),
        (GRUCell(64), (torch.randn(3, 64), torch.randn(3, 64)), {"input", "state"}),
        (
            nn.TransformerEncoderLayer(64, 4, 96, batch_first=True),
            (torch.randn(2, 5, 64),),
            {"self_attn.out_proj", "linear1", "linear2"},
        ),
    ]
    for model, inputs, names in cases:
        expected = model(*inputs).shape
        result = compress_model(model, settings=QUICK)
        assert set(result.replaced) == names
        assert all(isinstance(model.get_submodule(name), SPMLinear) for name in names)
        output = model(*inputs)
        assert output.shape == expected
        output.sum().backward()
        assert all(p.grad is not None for name in names for p in model.get_submodule(name).parameters())


def test_the_operator_that_is_put_in_is_the_one_that_was_fitted() -> None:
    model = nn.Sequential(nn.Linear(64, 96, dtype=torch.float64))
    before = model[0].weight.detach().clone()
    bias = model[0].bias.detach().clone()
    result = compress_model(model, settings=QUICK)
    found = float((model[0].weight.detach() - before).norm() / before.norm())
    assert found == pytest.approx(result.replaced["0"], rel=1e-5)
    assert torch.equal(model[0].bias, bias)
    assert model[0].weight.dtype == torch.float64


def test_layers_that_share_a_weight_go_on_sharing_it() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    compress_model(model, settings=QUICK)
    with torch.no_grad():
        next(iter(model[0].arrays.parameters())).mul_(2)
    assert torch.equal(model[0].weight, model[1].weight)
    assert not torch.equal(model[0].bias, model[1].bias)


def test_a_weight_tied_to_an_embedding_stays() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(80, 64), "lm_head": nn.Linear(64, 80, bias=False)})
    model["lm_head"].weight = model["embed"].weight
    result = compress_model(model, settings=QUICK)
    assert result.replaced == {}
    assert result.kept == {"lm_head": "a table whose rows are looked up, tied to a product with it"}


def test_globs_and_reasons() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 8))
    result = compress_model(model, settings=QUICK, exclude=["1"])
    assert set(result.replaced) == {"0"}
    assert result.kept == {"1": "excluded", "2": "narrower than 32 features"}
    with pytest.raises(UsageError, match="matches no tensor"):
        compress_model(model, settings=QUICK, include=["zzz"])
    model[1].weight.data[0, 0] = float("nan")
    with pytest.raises(SourceError, match=r"tensor '1\.weight' holds 1 NaN"):
        compress_model(model, settings=QUICK)
    with pytest.raises(UsageError, match="itself a linear layer"):
        compress_model(nn.Linear(64, 64), settings=QUICK)


def test_an_artifact_is_put_into_the_module_it_was_fitted_from(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    artifact = fit_model(open_source(tmp_path / "m.safetensors"), CompressSettings(QUICK), beside=tmp_path)
    apply_artifact(model, artifact)
    for i, layer in zip((0, 2), artifact.layers, strict=True):
        torch.testing.assert_close(model[i].weight, layer.operator.to_dense(), rtol=1e-4, atol=1e-6)
    with pytest.raises(ArtifactError, match=r"0\.weight: the model has no parameter of that name and shape"):
        apply_artifact(nn.Sequential(nn.ReLU()), artifact)
    with pytest.raises(ArtifactError, match=r"0\.weight: is \(8, 64\) in the model, \(96, 64\) fitted"):
        apply_artifact(nn.Sequential(nn.Linear(64, 8)), artifact)
