"""Sizes chosen for a target, overrides, and fits that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from draw import random_operator
from made import gaussian
from safetensors.torch import save_file

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.codecs import FLOAT16
from spm_compress.compress import Silent, parse_override, plan_model
from spm_compress.errors import UsageError
from spm_compress.forms.spm import SPM, Mixer, build_spm
from spm_compress.forms.sum import Sum

QUICK = CompressSettings(FitSettings(steps=20, block=8))


class Counting(Silent):
    """Counts the weights that are really fitted."""

    def __init__(self) -> None:
        self.fitted = 0

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        self.fitted += len(names)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A weight that one group of stages makes exactly, and one of noise."""
    easy = random_operator(build_spm(64, 64, stages=3, mixer=Mixer.ROTATION, block=8), dtype=torch.float32).to_dense()
    hard = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    save_file({"easy.weight": easy.contiguous(), "hard.weight": hard}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def fitted(model: Path, settings: CompressSettings, progress: Silent | None = None) -> Artifact:
    return fit_model(
        open_source(model), settings, beside=model.parent, progress=progress, cache=model.parent / ".spm-compress"
    )


@pytest.mark.parametrize("budget", [0.12, 0.2, 0.35])
def test_a_budget_holds_for_what_is_stored_and_goes_where_it_helps(model: Path, budget: float) -> None:
    artifact = fitted(model, replace(QUICK, budget=budget))
    assert sum(layer.stored_bytes for layer in artifact.layers) <= budget * 2 * 64 * 64 * 4
    stages = {layer.name: layer.form.summary["stages"] for layer in artifact.layers}
    assert stages["hard.weight"] >= stages["easy.weight"] == 3


def test_a_second_target_costs_no_refit(model: Path) -> None:
    first, second = Counting(), Counting()
    one = fitted(model, replace(QUICK, budget=0.3), first)
    assert first.fitted > 0
    other = fitted(model, replace(QUICK, budget=0.15), second)
    assert second.fitted == 0
    assert sum(layer.stored_bytes for layer in other.layers) <= sum(layer.stored_bytes for layer in one.layers)
    third = Counting()
    fitted(model, replace(QUICK, fit=replace(QUICK.fit, seed=1), budget=0.3), third)
    assert third.fitted == first.fitted  # other settings are another question


def test_what_was_kept_gives_the_same_artifact(model: Path) -> None:
    settings = replace(QUICK, budget=0.2)
    for _ in range(2):
        artifact = fitted(model, settings)
    fresh = fit_model(open_source(model), settings, beside=model.parent)
    for a, b in zip(artifact.layers, fresh.layers, strict=True):
        assert a.form == b.form
        assert all(torch.equal(x, b.operator.arrays[name]) for name, x in a.operator.arrays.items())


def test_an_error_bound_leaves_what_does_not_reach_it_dense(model: Path) -> None:
    artifact = fitted(model, replace(QUICK, max_error=0.5, fit=replace(QUICK.fit, steps=200)))
    assert [layer.name for layer in artifact.layers] == ["easy.weight"]
    assert artifact.layers[0].error <= 0.5
    (hard,) = [kept for kept in artifact.kept if kept.name == "hard.weight"]
    assert hard.reason.startswith("stays dense: no size reaches error 0.5 (closest: 0.")


def test_targets_that_cannot_be_met(model: Path) -> None:
    with pytest.raises(UsageError, match=r"`budget` 0\.01: the smallest sizes together take 6\.25%"):
        fitted(model, replace(QUICK, budget=0.01))
    nothing = fitted(model, replace(QUICK, exclude=("easy*",), max_error=0.01))
    assert not nothing.layers
    reasons = {kept.name: kept.reason for kept in nothing.kept}
    assert reasons["hard.weight"].startswith("stays dense: no size reaches error 0.01")


def test_a_dry_run_plans_without_the_fits(model: Path) -> None:
    settings = replace(QUICK, fit=replace(QUICK.fit, steps=100), budget=0.2)
    selected, forecast = plan_model(open_source(model), settings)
    assert [job.names[0] for job in selected.jobs] == ["easy.weight", "hard.weight"]
    assert forecast.plan.bytes <= 0.2 * forecast.plan.dense_bytes
    assert forecast.seconds > 0
    assert forecast.bytes > 6 * 64 * 64 * 4
    cache = model.parent / ".spm-compress"
    fitted(model, settings)
    known = plan_model(open_source(model), settings, cache=cache)[1]
    assert known.seconds == 0  # nothing is left to fit
    stored = {layer.name: layer.error for layer in fitted(model, settings).layers}
    assert {c.curve.name: c.point and c.point.error for c in known.plan.choices} == stored


def test_some_weights_can_have_other_settings(model: Path) -> None:
    overrides = (parse_override("*:stages=6"), parse_override("hard*:mixer=rotation,stages=9,low-rank=2,block=16"))
    layers = {layer.name: layer.form for layer in fitted(model, replace(QUICK, overrides=overrides)).layers}
    easy, hard = layers["easy.weight"], layers["hard.weight"]
    assert isinstance(easy, SPM)
    assert (easy.stages, easy.mixer) == (6, Mixer.GENERAL)
    assert isinstance(hard, Sum)
    assert (hard.summary["stages"], hard.summary["mixer"], hard.summary["rank"]) == (9, "rotation", 2)
    planned = fitted(model, replace(QUICK, overrides=(parse_override("easy*:stages=4"),), budget=0.3))
    assert {layer.name: layer.form.summary["stages"] for layer in planned.layers}["easy.weight"] == 4


def test_some_weights_can_have_another_form(model: Path) -> None:
    override = parse_override("hard*:form=low-rank")
    artifact = fitted(model, replace(QUICK, overrides=(override,)))
    assert {layer.name: layer.form.kind for layer in artifact.layers} == {
        "easy.weight": "spm",
        "hard.weight": "low_rank",
    }


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("stages=3", "write it as 'GLOB:stages=20,mixer=rotation'"),
        ("*:", "write it as"),
        ("*:depth=3", "'depth' is none of form, bits, stages, mixer"),
        ("*:stages=many", "'many' is no value for stages"),
        ("*:stages=0", "'0' is no value for stages"),
        ("*:mixer=magic", "'magic' is no value for mixer"),
        ("*:form=magic", "'magic': is none of spm"),
    ],
)
def test_overrides_that_say_nothing(text: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        parse_override(text)


def test_an_override_for_no_weight_is_a_mistake(model: Path) -> None:
    with pytest.raises(UsageError, match=r"`overrides` 'heavy\*' matches no tensor"):
        fitted(model, replace(QUICK, overrides=(parse_override("heavy*:stages=4"),)))


def test_a_plan_mixes_forms_and_may_keep_a_dense_map_in_fewer_bits(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    low = gaussian(64, 2) @ gaussian(2, 64, seed=1)
    save_file({"a.weight": low, "b.weight": gaussian(64, 64, seed=2)}, path)
    fit = FitSettings(steps=5, block=8, forms=("spm", "low_rank", "dense"))
    wanted = CompressSettings(replace(fit, store=FLOAT16), max_error=0.01)
    layers = {layer.name: layer for layer in fit_model(open_source(path), wanted, beside=tmp_path).layers}
    assert (layers["a.weight"].form.kind, layers["b.weight"].form.kind) == ("low_rank", "dense")
    assert layers["b.weight"].stored_bytes == 64 * 64 * 2
    small = CompressSettings(
        replace(fit, store=FLOAT16), budget=0.3
    )  # room for the one, and a chain or a low rank of the other
    assert sum(layer.stored_bytes for layer in fit_model(open_source(path), small, beside=tmp_path).layers) <= 9830
