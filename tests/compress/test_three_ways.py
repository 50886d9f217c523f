"""load, expand and export of one artifact compute the same model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from made import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from spm_compress import CompressSettings, FitSettings, expand, export_onnx, fit_model, read_artifact, write_artifact
from spm_compress.checkpoint import Source
from spm_compress.checkpoint.factory_source import open_factory
from spm_compress.compress import load_model
from spm_compress.compress.live import refreshed
from spm_compress.export import ExportSettings
from spm_compress.forms.lowering import Blocks

QUICK = FitSettings(stages=4, block=8, steps=5)
X = {"x": torch.randn(3, 64, generator=torch.Generator().manual_seed(1))}
ROWS = {"x": torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(1))}
IDS = {"x": torch.arange(12).reshape(3, 4)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.r, self.c, self.f = nn.LSTM(64, 32, batch_first=True), nn.GRUCell(32, 32), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.c(self.r(x)[0][:, -1]))  # type: ignore[no-any-return]


class Bare(nn.Module):
    """Parameters that are multiplied by as they are, turned and from the left; a bias that is none; a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(96, 64) / 8), nn.Parameter(torch.randn(96))
        self.v, self.left = nn.Parameter(torch.randn(96, 48) / 10), nn.Parameter(torch.randn(40, 48) / 7)
        self.register_buffer("r", torch.randn(40, 64) / 7)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(F.linear(x, self.weight) * torch.sigmoid(self.bias)) @ self.v
        return (self.left @ h.T).T @ self.r


class TiedLinears(nn.Module):
    def __init__(self, is_one: bool = False) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64)
        self.b = self.a if is_one else nn.Linear(64, 64)
        self.b.weight = self.a.weight
        self.o = nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.b(torch.relu(self.a(x))))  # type: ignore[no-any-return]


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 48), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.relu(self.a(x)), self.a.weight.t(), self.b)


class TiedTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.e, self.l, self.h = nn.Embedding(64, 64), nn.Linear(64, 64), nn.Linear(64, 64, bias=False)
        self.h.weight = self.e.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.h(torch.relu(self.l(self.e(x))))  # type: ignore[no-any-return]


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.u = nn.Parameter(torch.randn(64, 48) / 8), nn.Parameter(torch.randn(40, 48) / 7)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("btd,ed->bte", torch.einsum("btd,de->bte", x, self.w), self.u)


class Queries(nn.Module):
    """Learned queries: data to one layer, whatever the input is."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.l, self.k = nn.Parameter(torch.randn(32, 64)), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.k(x) @ self.l(self.q).T  # type: ignore[no-any-return]


def normed() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 64, bias=False))
    model(torch.randn(50, 64))
    return model


def parametrized() -> nn.Module:
    first = nn.utils.parametrizations.weight_norm(nn.Linear(64, 64))
    second = nn.Linear(64, 64)
    prune.l1_unstructured(second, "weight", 0.5)
    return nn.Sequential(first, nn.ReLU(), second, nn.Linear(64, 64))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48))


BUILDERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "attention": (Attention, ROWS),
    "recurrent": (Recurrent, ROWS),
    "bare": (Bare, X),
    "tied": (TiedLinears, X),
    "one_twice": (lambda: TiedLinears(is_one=True), X),
    "autoencoder": (Autoencoder, X),
    "table": (TiedTable, IDS),
    "einsum": (Einsum, ROWS),
    "queries": (Queries, X),
    "normed": (normed, X),
    "parametrized": (parametrized, X),
    "linear": (lambda: nn.Linear(64, 96), X),
    "half": (lambda: sequence().half(), X),
    "wide": (lambda: sequence().double(), X),
}


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    build, inputs = BUILDERS[name]
    return build().eval(), tuple(inputs.values())


def _register(name: str) -> None:
    globals()[f"build_{name}"] = lambda: built(name)


for _name in BUILDERS:
    _register(_name)


def source_of(name: str) -> Source:
    return open_factory(f"{__name__}:build_{name}")


def answers(tmp_path: Path, source: Source, name: str, path: Path) -> dict[str, np.ndarray]:
    """Return what each way out answers to the inputs."""
    artifact = read_artifact(path)
    (x,) = BUILDERS[name][1].values()
    dense = built(name)[0].float()
    dense.load_state_dict(expand(artifact).tensors)
    export_onnx(artifact, tmp_path / "out.onnx", source=source, settings=ExportSettings(lowering=Blocks()))
    runtime = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        found = {"load": load_model(artifact, source)(x).numpy(), "expand": dense(x).numpy()}
    (found["export"],) = runtime.run(None, {runtime.get_inputs()[0].name: x.numpy()})
    return found


# In float16 the expanded weights are rounded to 11 bits; an error of 0.1 % of a layer is above the others' tolerance.
TOLERANCES = {"half": 2e-3}


def agree(found: dict[str, np.ndarray], tolerance: float) -> None:
    for way in ("expand", "export"):
        difference = np.linalg.norm(found[way] - found["load"]) / np.linalg.norm(found["load"])
        assert difference < tolerance, way


@pytest.mark.parametrize(
    ("name", "is_calibrated"),
    [*((name, False) for name in sorted(BUILDERS)), *((name, True) for name in ("attention", "tied"))],
)
def test_the_three_ways_out_agree(name: str, is_calibrated: bool, tmp_path: Path) -> None:
    source = source_of(name)
    data = None
    if is_calibrated:
        data = tmp_path / "data.npz"
        (given,) = source.example().items()  # type: ignore[attr-defined]
        np.savez(data, **{given[0]: given[1].repeat(8, *[1] * (given[1].dim() - 1)).numpy() + 1})
    settings = CompressSettings(QUICK, include=("e.weight", "l.weight") if name == "table" else ())
    artifact = fit_model(source, settings, beside=tmp_path, data=data)
    write_artifact(artifact, tmp_path / "m.spm.safetensors")
    agree(answers(tmp_path, source, name, tmp_path / "m.spm.safetensors"), TOLERANCES.get(name, 1e-4))
    if is_calibrated:  # what a fit without a bias adds has no place
        assert expand(artifact).lost == ()


@pytest.mark.parametrize("name", ["bare", "tied"])
def test_they_agree_after_the_model_was_loaded_and_saved(name: str, tmp_path: Path) -> None:
    source = source_of(name)
    settings = CompressSettings(QUICK, include=("e.weight", "l.weight") if name == "table" else ())
    artifact = fit_model(source, settings, beside=tmp_path)
    model = load_model(artifact, source)
    with torch.no_grad():
        for each in model.parameters():
            if each.dim() == 1 and each.requires_grad:
                each.add_(0.1)
    write_artifact(refreshed(artifact, model, source, beside=tmp_path), tmp_path / "m.spm.safetensors")
    found = answers(tmp_path, source, name, tmp_path / "m.spm.safetensors")
    agree(found, 1e-4)
    with torch.no_grad():
        expected = model(*BUILDERS[name][1].values()).numpy()
    np.testing.assert_allclose(found["load"], expected, rtol=1e-3, atol=1e-4)


def test_what_is_data_or_unused_is_left_with_the_reason(tmp_path: Path) -> None:
    artifact = fit_model(source_of("queries"), CompressSettings(QUICK), beside=tmp_path)
    assert [layer.name for layer in artifact.layers] == ["k.weight", "l.weight"]
    (reason,) = (each.reason for each in artifact.kept if each.name == "q")
    assert reason.startswith("the model takes it as data")
