"""The fastest lowering of each layer, and of the model as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
from draw import laid_out, random_operator
from made import fitted_layer
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import FittedLayer
from spm_compress.compress.job import digest
from spm_compress.export import choice, one_file
from spm_compress.export.choice import plans, rows_of_layers
from spm_compress.export.graph import from_module
from spm_compress.forms.lowering import Blocks, Dense, Layout, lowerings
from spm_compress.forms.spm import Gauge, Mixer


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "spm-compress" / "lowerings.json"


def layer(name: str = "a.weight", weight: torch.Tensor | None = None) -> FittedLayer:
    out, into = weight.shape if weight is not None else (64, 64)
    form = laid_out(into, out, Mixer.GENERAL, Gauge.CANONICAL, stages=6, block=8)
    known = digest(weight) if weight is not None else ""
    return fitted_layer(random_operator(form, dtype=torch.float32), name, known)


def times(**given: list[float]) -> Mapping[str, list[float]]:
    slow = [1000.0] * len(given["dense"])
    return {each.name: given.get(each.name.replace(" ", "_").replace("-", "_"), slow) for each in lowerings()}


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (times(dense=[10, 10], blocks_feature_major=[5, 5], blocks_batch_major=[4, 4]), Blocks(Layout.BATCH_MAJOR)),
        # faster on the whole, but slower at one of the batches that were asked for
        (times(dense=[10, 10], blocks_feature_major=[1, 11], blocks_batch_major=[9, 9]), Blocks(Layout.BATCH_MAJOR)),
        (times(dense=[10, 10], blocks_feature_major=[9.9, 9.9]), Dense()),
    ],
)
def test_the_fastest_is_taken_that_is_never_slower(
    measured: Mapping[str, list[float]], expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "_timed", lambda *_: measured)
    (chosen,) = plans([layer()], {"a.weight": (1, 64)}, ExportSettings())[0]
    assert chosen.lowering == expected
    assert list(chosen.microseconds) == [each.name for each in lowerings()]
    assert ("faster than dense" in chosen.reason) == (expected != Dense())


def test_each_kind_of_layer_is_timed_once_and_the_times_are_kept(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = choice._timed
    monkeypatch.setattr(choice, "_timed", lambda *args: asked.append(1) or real(*args))
    rows = {"a.weight": (1,), "b.weight": (1,)}
    first = plans([layer("a.weight"), layer("b.weight")], rows, ExportSettings())
    assert len(asked) == 1
    assert plans([layer("a.weight"), layer("b.weight")], rows, ExportSettings()) == first
    assert len(asked) == 1
    plans([layer("a.weight")], {"a.weight": (2,)}, ExportSettings())
    assert len(asked) == 2, "other rows are another question"
    own_cache.write_text("{")
    plans([layer("a.weight")], {"a.weight": (2,)}, ExportSettings())
    assert len(asked) == 3, "a damaged cache is an empty one"


def test_plans_that_keep_to_one_layout_are_offered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        choice, "_timed", lambda *_: times(dense=[10], blocks_feature_major=[5], blocks_batch_major=[4])
    )
    found = [plan[0].lowering for plan in plans([layer()], {"a.weight": (1,)}, ExportSettings())]
    assert found == [Blocks(Layout.BATCH_MAJOR), Blocks(Layout.FEATURE_MAJOR)]


def test_rows_are_those_that_reach_each_layer(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head, self.mix = nn.Linear(64, 64), nn.Linear(64, 32), nn.Conv2d(64, 48, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            h = torch.relu(self.a(x))
            return self.head(h[:, 0]), self.mix(h.mT[..., None])

    torch.manual_seed(0)
    module = Model().eval()
    example = {"x": torch.zeros(2, 5, 64)}
    dense = from_module(module, example, {"x": {0: "batch", 1: "sequence"}}, ["y", "z"])
    weights = {"a": module.a.weight, "head": module.head.weight, "mix": module.mix.weight[..., 0, 0]}
    layers = [layer(name, weight.detach()) for name, weight in weights.items()]
    rows = rows_of_layers(dense, layers, ExportSettings(batches=(1, 4), sequence=7), tmp_path)
    assert rows == {"a": (7, 28), "head": (1, 4), "mix": (7, 28)}
    assert isinstance(dense, ir.Model)
    assert len(dense.graph.outputs) == 2, "the dense graph itself is not changed"


def test_a_model_that_gets_slower_keeps_its_products(mlp_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(mlp_file)
    artifact = fit_model(source, CompressSettings(FitSettings(steps=5, block=8)), beside=mlp_file.parent)
    monkeypatch.setattr(choice, "_timed", lambda *_: times(dense=[10], blocks_feature_major=[5]))
    monkeypatch.setattr(one_file, "_speedups", lambda paths, settings, known: [{1: 0.5} for _ in paths[1:]])
    exported = export_onnx(artifact, mlp_file.parent / "out.onnx", source=source)
    assert {type(each.lowering) for each in exported.choices} == {Dense}
    assert all("0.50x at batch 1" in each.reason for each in exported.choices)


def test_auto_is_the_default_and_reports_its_speed(mlp_file: Path) -> None:
    source = open_source(mlp_file)
    artifact = fit_model(source, CompressSettings(FitSettings(steps=5, block=8)), beside=mlp_file.parent)
    settings = ExportSettings(batches=(1, 8))
    exported = export_onnx(artifact, mlp_file.parent / "out.onnx", source=source, settings=settings)
    assert [each.layer for each in exported.choices] == ["0.weight", "2.weight"]
    assert set(exported.speedups) == {1, 8}
    again = export_onnx(artifact, mlp_file.parent / "again.onnx", source=source, settings=settings)
    assert (again.choices, again.speedups) == (exported.choices, exported.speedups)
    assert again.path.read_bytes() == exported.path.read_bytes()
