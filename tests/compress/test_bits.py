"""Fewer bits for dense maps and lookup tables that stay."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made import gaussian
from safetensors.torch import save_file
from torch import nn

import spm_compress
from spm_compress import (
    CompressSettings,
    FitSettings,
    FormLinear,
    Operator,
    compress_model,
    expand,
    fit_model,
    open_source,
    read_artifact,
    write_artifact,
)
from spm_compress.checkpoint import Artifact
from spm_compress.codecs import FLOAT16, FLOAT32, StoredArray, parse_bits
from spm_compress.compress.settings import parse_override
from spm_compress.errors import SourceError, UsageError
from spm_compress.report import summarize

QUICK = FitSettings(stages=4, block=8, steps=4)


def fitted(folder: Path, settings: CompressSettings, **tensors: torch.Tensor) -> Artifact:
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return fit_model(open_source(folder / "model.safetensors"), settings, beside=folder)


def bits(
    dense: str | None = None, table: str | None = None, *overrides: str, include: str = "none"
) -> CompressSettings:
    return CompressSettings(
        QUICK,
        include=(include,),
        dense=None if dense is None else parse_bits(dense),
        table=None if table is None else parse_bits(table),
        overrides=tuple(map(parse_override, overrides)),
    )


def test_nothing_but_bits(tmp_path: Path) -> None:
    weight, table = gaussian(64, 48), gaussian(100, 48, seed=1)
    artifact = fitted(tmp_path, bits("4", "3"), a__weight=weight, embed__weight=table, a__bias=torch.zeros(64))
    layers = {layer.name: layer for layer in artifact.layers}
    assert {name: (layer.form.kind, layer.stored.codec.name) for name, layer in layers.items()} == {
        "a.weight": ("dense", "integer(4,row)"),
        "embed.weight": ("dense", "integer(3,row)"),
    }
    assert (layers["a.weight"].is_table, layers["embed.weight"].is_table) == (False, True)
    assert [kept.name for kept in artifact.kept] == ["a.bias"]
    # what a file decodes to is what everybody has
    path = tmp_path / "model.spm.safetensors"
    write_artifact(artifact, path)
    read = read_artifact(path)
    found = expand(read).tensors
    for name, tensor, text in (("a.weight", weight, "4"), ("embed.weight", table, "3")):
        decoded = StoredArray.of(parse_bits(text), tensor).decoded()
        assert torch.equal(found[name], decoded)
        assert layers[name].error == pytest.approx(float((decoded - tensor).norm() / tensor.norm()), rel=1e-5)
    savings = summarize(read, path)
    by_name = {layer.name: layer for layer in savings.layers}
    assert by_name["a.weight"].bits == 8 * (64 * 24 + 64 * 2 + 4) / (64 * 48)
    assert by_name["embed.weight"].form_text == "dense table in 3 bits"
    assert savings.mean_svd_error is None
    nothing = summarize(fitted(tmp_path, bits("1"), a__weight=weight), path)
    assert nothing.verdict.endswith(
        "The model will not work without recovery: store more bits, or fit them to calibration data."
    )


def test_a_map_gets_stages_and_what_stays_gets_bits(tmp_path: Path) -> None:
    artifact = fitted(
        tmp_path,
        bits("8", None, "c.*:bits=2", "d.*:bits=32", include="a.*"),
        **{f"{name}__weight": gaussian(64, 64, seed=i) for i, name in enumerate("abcd")},
    )
    codecs = {layer.name: (layer.form.kind, layer.stored.codec) for layer in artifact.layers}
    assert codecs == {
        "a.weight": ("spm", FLOAT32),
        "b.weight": ("dense", parse_bits("8")),
        "c.weight": ("dense", parse_bits("2")),
    }
    assert [kept.name for kept in artifact.kept] == ["d.weight"]


def test_a_head_that_is_tied_to_a_table_is_stored_once(tmp_path: Path) -> None:
    table = gaussian(100, 48)
    artifact = fitted(tmp_path, bits("8", "4"), embed__weight=table, head__weight=table.clone())
    (layer,) = artifact.layers
    assert layer.names == ("embed.weight", "head.weight")
    assert layer.is_table and layer.stored.codec == parse_bits("4")


def test_the_same_numbers_in_another_shape_are_another_weight(tmp_path: Path) -> None:
    weight = gaussian(64, 48)
    artifact = fitted(tmp_path, bits("8"), a__weight=weight, b__weight=weight.reshape(48, 64).clone())
    assert [layer.shape for layer in artifact.layers] == [(64, 48), (48, 64)]


def test_a_table_of_few_rows_stays_as_it_is(tmp_path: Path) -> None:
    """Two token types: nothing to save, and every token meets one of them."""
    artifact = fitted(tmp_path, bits("8", "4"), token_types__weight=gaussian(2, 48), embed__weight=gaussian(64, 48))
    assert [layer.name for layer in artifact.layers] == ["embed.weight"]


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"embed\.weight"):
        fitted(tmp_path, bits(None, "4"), embed__weight=torch.full((64, 48), torch.nan))
    with pytest.raises(UsageError, match=r"`overrides` 'b\.\*' matches no tensor"):
        fitted(tmp_path, bits("4", None, "b.*:bits=2"), a__weight=gaussian(64, 48))
    with pytest.raises(UsageError, match="the angles of stages take 4 to 8 bits"):
        FitSettings(store=parse_bits("3"))
    with pytest.raises(
        UsageError, match=r"`overrides` 'a.\*:bits=9': bits '9': a number takes 32, 16, 8 to 2, 1.6 or 1"
    ):
        parse_override("a.*:bits=9")


def test_blocks_that_do_not_divide_a_row_are_told_before_anything_is_fitted(tmp_path: Path) -> None:
    weights = {f"{name}__weight": gaussian(64, 48, seed=i) for i, name in enumerate("abcd")}
    named = (
        r"a.weight \(48 numbers, 4/32\), b.weight \(48 numbers, 4/32\), c.weight \(48 numbers, 4/32\) and 1 more are no"
    )
    plan = CompressSettings(QUICK, dense=parse_bits("4/32"), max_error=0.2)  # what it leaves dense is not known yet
    of_form = CompressSettings(replace(QUICK, forms=("dense",), store=parse_bits("4/32")))
    for settings in (bits("4/32"), plan, of_form):
        with pytest.raises(UsageError, match=rf"the rows of {named}.* `overrides` 'a.weight:bits=4'"):
            fitted(tmp_path, settings, **weights)
    found = fitted(tmp_path, bits("4/32", None, "[a-d].*:bits=4"), **weights, e__weight=gaussian(64, 64)).layers
    assert [layer.stored.codec.name for layer in found] == [*["integer(4,row)"] * 4, "integer(4,32)"]


@pytest.mark.parametrize(
    "override", ["b.bias:bits=8", "token_types.*:bits=8", "x.*:bits=8", "x.*:stages=3", "b.bias:stages=3"]
)
def test_settings_that_no_weight_takes_are_refused(override: str, tmp_path: Path) -> None:
    settings = replace(bits("4", "4", override), exclude=("x.*",))
    kept = {"b__bias": torch.zeros(64), "token_types__weight": gaussian(2, 48), "x__weight": gaussian(64, 48, seed=1)}
    with pytest.raises(
        UsageError, match=r"`overrides` '.*': matches nothing that can be (stored in fewer bits|fitted) \("
    ):
        fitted(tmp_path, settings, a__weight=gaussian(64, 48), **kept)


def test_bits_and_blocks_that_a_form_has_not_are_refused(tmp_path: Path) -> None:
    for forms in (("spm",), ("low_rank",), ("monarch",), ("spm", "dense")):
        with pytest.raises(
            UsageError, match="`bits` 4/32: only rows of dense maps and tables have a scale for every 32"
        ):
            FitSettings(store=parse_bits("4/32"), forms=forms)
    for override in ("a.*:bits=3", "a.*:bits=4/32"):
        with pytest.raises(UsageError, match=r"`overrides` of a\.weight: bits"):
            fitted(tmp_path, bits(None, None, override, include="a.*"), a__weight=gaussian(64, 64))


@pytest.mark.parametrize("text", ["8", "4", "4/32", "2", "1.6", "1", "1/32"])
def test_rows_of_zeros_are_zeros_again(text: str, tmp_path: Path) -> None:
    weight, table = gaussian(64, 64), gaussian(100, 64, seed=1)
    weight[3], weight[:, 5], table[7] = 0, 0, 0
    zeros = torch.zeros(64, 64)
    found = {
        layer.name: layer
        for layer in fitted(tmp_path, bits(text, text), a__weight=weight, embed__weight=table, b__weight=zeros).layers
    }
    assert not found["a.weight"].operator.to_dense()[3].any()
    assert not found["embed.weight"].operator.to_dense()[7].any()
    assert not found["b.weight"].operator.to_dense().any() and found["b.weight"].error == 0
    assert all(layer.operator.to_dense().isfinite().all() for layer in found.values())


def test_what_is_tied_to_something_excluded_stays_as_it_is(tmp_path: Path) -> None:
    weight = gaussian(100, 48)
    settings = replace(bits("4", "4"), exclude=("embed.*",))
    twins = {"embed__weight": weight, "head__weight": weight.clone(), "a__weight": gaussian(100, 48, seed=1)}
    artifact = fitted(tmp_path, settings, **twins)
    assert [layer.name for layer in artifact.layers] == ["a.weight"]
    with pytest.raises(UsageError, match=r"no weight is left to fit.* or give `dense_bits` or `table_bits`"):
        fitted(tmp_path, bits("32"), **twins)


@pytest.mark.parametrize("text", ["8", "4", "2", "1.6", "1"])
def test_a_model_that_is_loaded_computes_with_what_is_stored(text: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(embed=nn.Embedding(64, 48), a=nn.Linear(48, 64)))
    result = compress_model(model, settings=bits(text, text))
    path = tmp_path / "model.spm.safetensors"
    result.save(path)
    read = {layer.name: layer.operator.to_dense() for layer in read_artifact(path).layers}
    ids = torch.arange(64)
    expected = read["embed.weight"][ids] @ read["a.weight"].T + model.a.bias
    torch.testing.assert_close(result.model(ids), expected, rtol=1e-5, atol=1e-5)


def test_with_real_inputs_the_outputs_of_few_bits_are_nearer(bert: Path, texts: Path, tmp_path: Path) -> None:
    errors = []
    for data in (None, texts):
        artifact = fit_model(open_source(bert), bits("3"), beside=tmp_path, data=data)
        errors.append({layer.name: layer for layer in artifact.layers})
    plain, weighted = errors
    assert all(weighted[name].error >= layer.error - 1e-6 for name, layer in plain.items())
    outputs = [layer.output_error for layer in weighted.values() if layer.output_error is not None]
    assert sum(outputs) / len(outputs) < 0.8 * sum(layer.error for layer in plain.values()) / len(plain)


def test_bits_of_a_live_model_are_saved_again(bert: Path, tmp_path: Path) -> None:
    path = tmp_path / "bert.spm.safetensors"
    write_artifact(fit_model(open_source(bert), bits("4", "4"), beside=tmp_path), path)
    spm_compress.save(spm_compress.load(path), path.with_name("again.spm.safetensors"), like=path)
    before, after = read_artifact(path), read_artifact(path.with_name("again.spm.safetensors"))
    for old, new in zip(before.layers, after.layers, strict=True):
        assert (new.stored.codecs, new.is_table) == (old.stored.codecs, old.is_table)
        torch.testing.assert_close(new.operator.to_dense(), old.operator.to_dense(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("forms", [("spm",), ("monarch",), ("low_rank",)])
def test_the_fewest_bits_that_harm_little_are_found(forms: tuple[str, ...], tmp_path: Path) -> None:
    """Stages of a random weight miss so much that four or five bits are as good; what is nearly exact needs more."""
    random = gaussian(64, 64)
    planted = gaussian(64, 3, seed=1) @ gaussian(3, 64, seed=2) + 0.02 * gaussian(64, 64, seed=3)
    few = FitSettings(stages=12, block=8, steps=60, forms=forms, store=parse_bits("8"), fewest=True)
    plain = replace(few, store=FLOAT32, fewest=False)
    weights = {"a__weight": random, "b__weight": planted}
    found = {layer.name: layer for layer in fitted(tmp_path, CompressSettings(few), **weights).layers}
    exact = {layer.name: layer for layer in fitted(tmp_path, CompressSettings(plain), **weights).layers}
    bits = {name: layer.stored.codec.bits for name, layer in found.items()}
    assert bits["a.weight"] < 8
    for name, layer in found.items():
        assert bits[name] == 8 or layer.error <= 1.005 * exact[name].error + 1e-6
    if forms == ("low_rank",):
        assert bits["b.weight"] > bits["a.weight"]


def test_eight_bits_are_refused_where_a_fit_is_exact(tmp_path: Path) -> None:
    """What is a chain of six stages is found; angles of 8 bits would lose that, and a random weight loses nothing."""
    fit = FitSettings(stages=6, steps=20, store=parse_bits("8"))
    form = fit.spm(64, 64)
    arrays = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(form.shapes.items())}
    chain = Operator(form, arrays).to_dense()
    exact, lossy = fitted(tmp_path, CompressSettings(fit), a__weight=chain, b__weight=gaussian(64, 64)).layers
    assert exact.stored.codec == FLOAT32 and exact.error < 1e-5
    assert exact.reason is not None and "would raise the error from 0.000 to 0.0" in exact.reason
    assert lossy.stored.codec == parse_bits("8") and lossy.reason is None


def test_a_dense_map_is_not_halved_where_that_harms(tmp_path: Path) -> None:
    """Numbers of 1e-7 are few of float16's smallest steps; few bits have a scale, and are what was asked for."""
    small, usual = fitted(tmp_path, bits("16"), a__weight=1e-7 * gaussian(64, 64), b__weight=gaussian(64, 64)).layers
    assert small.stored.codec == FLOAT32 and small.error == 0
    assert usual.stored.codec == FLOAT16
    (taken,) = fitted(tmp_path, bits("8"), a__weight=1e-7 * gaussian(64, 64)).layers
    assert taken.stored.codec == parse_bits("8") and taken.reason is None


def test_what_a_live_model_became_is_stored_not_what_it_was_fitted_to(bert: Path, texts: Path, tmp_path: Path) -> None:
    """Scales are refitted to the weight in a fit; after a training the weight is not what the layer is to be near."""
    settings = CompressSettings(replace(QUICK, store=parse_bits("8")), include=("encoder.*",))
    path, again = tmp_path / "bert.spm.safetensors", tmp_path / "again.spm.safetensors"
    write_artifact(fit_model(open_source(bert), settings, beside=tmp_path, data=texts), path)
    model = spm_compress.load(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "arrays" in name:
                parameter += 0.1 * parameter.abs().mean() * gaussian(*parameter.shape)
    live = {name: each.weight.detach() for name, each in model.named_modules() if isinstance(each, FormLinear)}
    spm_compress.save(model, again, like=path)
    for layer in read_artifact(again).layers:
        expected = live[layer.name.removesuffix(".weight")]
        found = layer.operator.to_dense()
        assert float((found - expected).norm() / expected.norm()) < 0.03


def test_bits_of_what_a_plan_leaves_dense_and_of_what_is_excluded(tmp_path: Path) -> None:
    weights = {f"{name}__weight": gaussian(64, 64, seed=i) for i, name in enumerate("ab")}
    settings = CompressSettings(QUICK, exclude=("b.*",), dense=parse_bits("4"), max_error=0.2)
    artifact = fitted(tmp_path, settings, **weights)
    assert [(layer.name, layer.stored.codec.name) for layer in artifact.layers] == [("a.weight", "integer(4,row)")]
    assert [(kept.name, kept.reason) for kept in artifact.kept] == [("b.weight", "excluded")]


def test_a_tie_is_decided_as_one_in_the_tables_bits(tmp_path: Path) -> None:
    table = gaussian(100, 48)
    both = {"embed__weight": table, "head__weight": table.clone()}
    with pytest.raises(UsageError, match="no weight is left to fit"):  # the table stays, and so does its head
        fitted(tmp_path, bits("8"), **both)
    (layer,) = fitted(tmp_path, bits(None, "4"), **both).layers
    assert layer.names == ("embed.weight", "head.weight")


def test_the_bits_of_one_weight_are_enough_and_go_before_auto(tmp_path: Path) -> None:
    weights = {f"{name}__weight": gaussian(64, 64, seed=i) for i, name in enumerate("ab")}
    (layer,) = fitted(tmp_path, bits(None, None, "a.*:bits=4"), **weights).layers
    assert (layer.name, layer.stored.codec.name) == ("a.weight", "integer(4,row)")
    few = replace(QUICK, stages=12, forms=("low_rank",), store=parse_bits("8"), fewest=True)
    auto = CompressSettings(few, overrides=(parse_override("a.*:bits=32"),))
    codecs = {layer.name: layer.stored.codec for layer in fitted(tmp_path, auto, **weights).layers}
    assert codecs["a.weight"] == FLOAT32 != codecs["b.weight"]
    with pytest.raises(UsageError, match="no weight is left to fit"):
        fitted(tmp_path, replace(bits("4"), min_features=1000), **weights)


def test_sequences_and_tables_with_calibration_data(bert: Path, texts: Path, tmp_path: Path) -> None:
    tables = fit_model(open_source(bert), bits(None, "4"), beside=tmp_path, data=texts)
    assert all(layer.is_table for layer in tables.layers) and tables.layers
    after = CompressSettings(QUICK, include=("*.query.weight",), dense=parse_bits("4"), is_sequential=True)
    found = fit_model(open_source(bert), after, beside=tmp_path, data=texts)
    assert all(layer.output_error is not None for layer in found.layers)
