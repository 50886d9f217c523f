"""State dicts inside of what training programs save: found wherever they are, several listed, one chosen by its key."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, fit_model, load, open_source, read_artifact, write_artifact
from spm_compress.calibration.collect import load_or_collect
from spm_compress.checkpoint import FittedLayer, key_of, nested, source_of
from spm_compress.checkpoint.nested import models_in
from spm_compress.compress import Ledger, Refit, Silent
from spm_compress.errors import ArtifactError, SourceError, SpmError, UsageError

QUICK = CompressSettings(FitSettings(stages=3, steps=2, block=8))


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64)).state_dict()


def adam_state() -> dict[str, Any]:
    """Of a real optimizer that has made a step: matrices in every slot."""
    layer = nn.Linear(64, 96)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


def momentum_state() -> dict[str, Any]:
    layer = nn.Linear(64, 96)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(2, 64)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


ADAM, MOMENTUM = adam_state(), momentum_state()
# Names of plain containers, and things that stand beside a model and are none.
KEYS = st.sampled_from(
    ["net", "generator", "ema", "a", "model", "state_dict", "module", "D", "weights", "params", "x_1"]
)
BESIDE = st.sampled_from(
    [
        ("epoch", 3),
        ("step", torch.tensor(7)),
        ("best", {"score": torch.tensor(0.5)}),
        ("optimizer", ADAM),
        ("opt_g", ADAM),
        ("optimizer_states", [ADAM, MOMENTUM]),
        ("sgd", MOMENTUM),
        ("slots", MOMENTUM["state"]),
        ("optim_raw", {"w": torch.ones(64, 64)}),
        ("lr_schedulers", [{"base": torch.ones(2, 2)}]),
        ("sched", {"table": torch.ones(64, 64)}),
        ("scaler", {"scale": torch.ones(2, 2)}),
        ("rng_state", {"torch": torch.zeros(64, dtype=torch.uint8), "list": [torch.zeros(64, dtype=torch.uint8)]}),
        ("generators", {"cpu": torch.get_rng_state()}),
        ("class_weights", {"loss": torch.ones(10)}),
        ("args", {"lr": 0.1, "names": ["a", "b"]}),
        ("history", [1.0, [2.0, None], (torch.ones(64, 64), 3)]),
    ]
)


@st.composite
def around(draw: st.DrawFn, inner: dict[str, torch.Tensor], deepest: int = 4) -> tuple[str, Any]:
    """A nest of dicts, lists and tuples around a state dict, and the way to that; no mapping on it holds a matrix."""
    way: list[str] = []
    content: Any = inner
    for _ in range(draw(st.integers(0, deepest))):
        if draw(st.booleans()):
            beside = dict(draw(st.lists(BESIDE, max_size=3)))
            key = draw(KEYS)
            items = [*beside.items(), (key, content)]
            content = OrderedDict(items) if draw(st.booleans()) else dict(reversed(items))
            way.insert(0, key)
        else:
            before = draw(st.lists(st.sampled_from([1, None, "x", torch.ones(64, 64), ADAM]), max_size=3))
            content = [*before, content] if draw(st.booleans()) else (*before, content)
            way.insert(0, str(len(before)))
    return ".".join(way) or ".", content


@given(nest=around(state()))
def test_one_state_dict_is_found_wherever_it_is(nest: tuple[str, Any]) -> None:
    way, content = nest
    ((name, found),) = models_in(content).items()
    assert name == way
    assert {key: value for key, value in found.items() if key in state()}.keys() == state().keys()
    assert all(torch.equal(found[key], value) for key, value in state().items())


@given(first=around(state(), 3), second=around(state(1), 3))
def test_two_state_dicts_are_both_listed(first: tuple[str, Any], second: tuple[str, Any]) -> None:
    found = models_in({"student": first[1], "teacher": second[1]})
    expected = {("student" if way == "." else f"student.{way}"): state() for way, _ in [first]}
    expected |= {("teacher" if way == "." else f"teacher.{way}"): state(1) for way, _ in [second]}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert all(torch.equal(found[name][key], value) for key, value in values.items())


def test_what_lies_deeper_than_four_keys_is_not_looked_for() -> None:
    assert set(models_in({"a": [{"b": {"c": state()}}]})) == {"a.0.b.c"}
    assert not models_in({"a": [{"b": {"c": {"d": state()}}}]})


def test_what_a_module_keeps_beside_its_tensors_is_no_model() -> None:
    with_extra = {**state(), "0._extra_state": {"history": torch.ones(64, 64)}}
    assert set(models_in(with_extra)) == {"."}
    assert set(models_in({"net": with_extra})) == {"net"}


def test_names_that_mean_the_same_way_stay_apart() -> None:
    assert set(models_in({"a.b": state(), "a": {"b": state(1)}})) == {"a.b", "a.b+"}


@pytest.mark.parametrize("name", ["optimized", "optimal_model", "schedule_free_net", "rescaled", "arng", "Learning"])
def test_only_whole_words_make_a_state(name: str) -> None:
    assert set(models_in({name: state()})) == {name}


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_the_one_model_is_taken_and_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.ckpt", {"step": 10, "nets": [{"net": state()}], "optimizer": ADAM})
    source = open_source(path)
    assert key_of(source) == "nets.0.net"
    assert torch.equal(source.read("2.weight"), state()["2.weight"])
    assert key_of(open_source(saved(tmp_path / "flat.pt", {**state(), "step": torch.tensor(3), "epoch": 4}))) is None
    assert len(open_source(tmp_path / "flat.pt").tensors()) == 5


def test_several_are_listed_with_their_sizes_and_a_key_chooses(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"model": state(), "ema": state(1), "optimizer": ADAM})
    with pytest.raises(UsageError) as error:
        open_source(path)
    assert str(error.value) == (
        f"{path}: holds several models: model (4 tensors), ema (4 tensors); choose one with `key` NAME"
    )
    for key, seed in (("model", 0), ("ema", 1)):
        source = open_source(path, key=key)
        assert key_of(source) == key
        assert torch.equal(source.read("0.weight"), state(seed)["0.weight"])
    with pytest.raises(UsageError, match=r"holds no model under `key` modle; near misses: model$"):
        open_source(path, key="modle")
    with pytest.raises(UsageError, match=r"under `key` 7; there is: model \(4 tensors\), ema \(4 tensors\)$"):
        open_source(path, key="7")
    with pytest.raises(UsageError, match="holds no model under `key` optimizer"):
        open_source(path, key="optimizer")


def test_the_top_is_a_model_too_beside_one_within(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {**state(), "ema": state(1)})
    with pytest.raises(UsageError, match=r"several models: \. \(4 tensors\), ema \(4 tensors\)"):
        open_source(path)
    assert torch.equal(open_source(path, key=".").read("0.weight"), state()["0.weight"])


def test_a_key_for_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    save_file(state(), tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"is no file of torch\.save, so `key` ema chooses nothing in it"):
        open_source(tmp_path / "m.safetensors", key="ema")
    with pytest.raises(UsageError, match=r"`key` ema: is for a file of torch\.save"):
        open_source(None, "module:function", "ema")


def test_state_of_training_alone_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no tensors of a model"):
        open_source(saved(tmp_path / "m.pt", {"optimizer": ADAM, "epoch": 3}))
    with pytest.raises(SourceError, match="holds no tensors of a model"):
        open_source(saved(tmp_path / "optimizer.pt", ADAM))


def test_what_refers_to_itself_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nested, "_MOST", 100_000)
    loop: list[Any] = []
    loop += [loop] * 1000
    with pytest.raises(SourceError, match="holds more than 100,000 values in lists and mappings"):
        open_source(saved(tmp_path / "m.pt", {"model": state(), "loop": loop}))


def test_an_artifact_knows_its_key(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"a": state(), "b": state(1)})
    artifact = fit_model(open_source(path, key="b"), QUICK, beside=tmp_path)
    write_artifact(artifact, tmp_path / "m.spm.safetensors")
    found = read_artifact(tmp_path / "m.spm.safetensors")
    assert found.source["key"] == "b"
    again = source_of(found, tmp_path / "m.spm.safetensors")
    assert torch.equal(again.read("0.weight"), state(1)["0.weight"])
    save_file(state(), tmp_path / "flat.safetensors")
    flat = fit_model(open_source(tmp_path / "flat.safetensors"), QUICK, beside=tmp_path)
    assert "key" not in flat.source


def test_a_refit_of_another_key_is_of_another_model(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"a": state(), "b": state(1)})
    before = fit_model(open_source(path, key="a"), QUICK, beside=tmp_path)
    refit = Refit(before, ("0.*",))
    with pytest.raises(ArtifactError, match="belongs to another model"):
        fit_model(open_source(path, key="b"), QUICK, beside=tmp_path, refit=refit)
    settings = replace(QUICK, fit=replace(QUICK.fit, steps=3))
    assert len(fit_model(open_source(path, key="a"), settings, beside=tmp_path, refit=refit).layers) == 2


MODULE = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64))

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(64, 96)

    def forward(self, x):
        return self.module(x)
"""


@pytest.fixture
def builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wrapped_builders.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_wrapped_modules_are_loaded_into_what_a_factory_builds(prefix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"net": {prefix + name: value for name, value in state().items()}})
    source = open_source(path, "wrapped_builders:build")
    assert set(source.tensors()) == {prefix + name for name in state()}  # the names of the file
    artifact = fit_model(source, QUICK, beside=tmp_path)
    write_artifact(artifact, tmp_path / "m.spm.safetensors")
    assert artifact.source["key"] == "net"
    model = load(tmp_path / "m.spm.safetensors", factory="wrapped_builders:build")
    matrices = {layer.name.removeprefix(prefix): layer.operator.to_dense() for layer in artifact.layers}
    x = torch.randn(5, 64)
    hidden = torch.relu(x @ matrices["0.weight"].T + state()["0.bias"])
    torch.testing.assert_close(model(x), hidden @ matrices["2.weight"].T + state()["2.bias"], atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("builders")
def test_a_prefix_that_some_names_lack_is_no_wrapper(tmp_path: Path) -> None:
    names = ["module.0.weight", "module.0.bias", "2.weight", "2.bias"]
    path = saved(tmp_path / "m.pt", dict(zip(names, state().values(), strict=True)))
    with pytest.raises(SourceError, match="does not fit what `factory` wrapped_builders:build builds"):
        open_source(path, "wrapped_builders:build")


@pytest.mark.usefixtures("builders")
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_submodule_that_is_called_module_keeps_its_name(prefix: str, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "m.pt", {f"{prefix}module.weight": torch.ones(96, 64), f"{prefix}module.bias": torch.ones(96)}
    )
    source = open_source(path, "wrapped_builders:Own")
    write_artifact(fit_model(source, QUICK, beside=tmp_path), tmp_path / "m.spm.safetensors")
    model = load(tmp_path / "m.spm.safetensors", factory="wrapped_builders:Own")
    assert torch.equal(model.module.bias, torch.ones(96))


def test_the_listing_is_cut(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {f"net{i}": {"w": torch.ones(2, 2)} for i in range(40)})
    with pytest.raises(UsageError, match=re.escape("net19 (1 tensor), and 20 more; choose one with `key` NAME")):
        open_source(path)


@pytest.mark.usefixtures("builders")
def test_moments_that_were_kept_of_one_key_are_not_taken_for_another(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"a": state(), "b": state(1)})
    np.savez(tmp_path / "x.npz", input=torch.randn(32, 64).numpy())
    kept = tmp_path / "moments.safetensors"
    means = {}
    for key in "ab":
        source = open_source(path, "wrapped_builders:build", key)
        found = load_or_collect(source, tmp_path / "x.npz", ["2.weight"], kept)
        means[key] = found["2.weight"].mean
    assert not torch.allclose(means["a"], means["b"])


def test_a_ledger_of_one_key_is_not_gone_on_with_for_another(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.pt", {"a": state(), "b": state(1)})

    class Stop(Silent):
        def layer(self, layer: FittedLayer) -> None:
            raise KeyboardInterrupt

    settings = CompressSettings(FitSettings(stages=3, steps=2, block=8))
    with pytest.raises(SpmError, match="interrupted"), Ledger(tmp_path / "m.spm.safetensors") as ledger:
        fit_model(open_source(path, key="a"), settings, beside=tmp_path, ledger=ledger, progress=Stop())
    expected = pytest.raises(ArtifactError, match=r"unfinished fit with key a \(now b\)")
    with expected, Ledger(tmp_path / "m.spm.safetensors") as ledger:
        fit_model(open_source(path, key="b"), settings, beside=tmp_path, ledger=ledger)
