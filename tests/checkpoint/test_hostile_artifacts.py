"""Artifacts whose manifest lies, of forms, codecs, sizes or names: one line, before that costs memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import write_header
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spm_compress import CompressSettings, FitSettings, expand, fit_model, open_source, read_artifact, write_artifact
from spm_compress.checkpoint import Artifact, FittedLayer
from spm_compress.errors import ArtifactError, SourceError
from spm_compress.forms import Operator, StoredOperator
from spm_compress.forms.low_rank import LowRank


def fitted_artifact(folder: Path, forms: tuple[str, ...] = ("spm",)) -> Path:
    save_file({"w": torch.randn(64, 64)}, folder / "model.safetensors")
    path = folder / "model.spm.safetensors"
    settings = CompressSettings(FitSettings(stages=8, steps=1, forms=forms))
    write_artifact(fit_model(open_source(folder / "model.safetensors"), settings, beside=folder), path)
    return path


def manifest_in(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["spm_compress"])
    return found


def without_stages(width: int) -> dict[str, Any]:
    groups = [{"order": [1, 0], "stages": 0, "low": 1, "descending": False}]
    return {
        "kind": "spm",
        "mixer": "general",
        "gauge": "canonical",
        "in_features": width,
        "out_features": width,
        "chains": [{"width": width, "scales": [], "groups": groups}],
    }


# What a form claims, and the arrays, none of which has a number, by which that would be true.
HUGE = 1 << 50
CLAIMS: dict[str, tuple[dict[str, Any], dict[str, list[int]]]] = {
    "spm": (without_stages(HUGE), {"0.off_diagonal": [0, HUGE]}),
    "low_rank": (
        {"kind": "low_rank", "in_features": HUGE, "out_features": HUGE, "rank": 0},
        {"left": [HUGE, 0], "right": [0, HUGE]},
    ),
    "wide_dense": ({"kind": "dense", "in_features": HUGE, "out_features": 0}, {"weight": [0, HUGE]}),
    "tall_dense": ({"kind": "dense", "in_features": 0, "out_features": HUGE}, {"weight": [HUGE, 0]}),
    "sum": (
        {
            "kind": "sum",
            "parts": [
                without_stages(HUGE),
                {"kind": "low_rank", "in_features": HUGE, "out_features": HUGE, "rank": 0},
            ],
        },
        {"0.0.off_diagonal": [0, HUGE], "1.left": [HUGE, 0], "1.right": [0, HUGE]},
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_artifact_that_claims_any_width_is_damaged(tmp_path: Path, claim: str) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    form, arrays = CLAIMS[claim]
    shape = [form.get("out_features", HUGE), form.get("in_features", HUGE)]
    manifest["layers"][0].update(form=form, codecs=dict.fromkeys(arrays, "float32"), shape=shape)
    numbers = {f"w.spm.{name}": {"dtype": "F32", "shape": of, "data_offsets": [0, 0]} for name, of in arrays.items()}
    write_header(path, {"__metadata__": {"spm_compress": json.dumps(manifest)}, **numbers})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


@pytest.mark.parametrize("claim", [-1, 4, HUGE, "2", [1], 1.5])
def test_an_artifact_that_claims_any_kernel_is_damaged(tmp_path: Path, claim: object) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    manifest["layers"][0]["kernel_dims"] = claim
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    save_file(tensors, path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


def claimed(width: int, **groups: Any) -> dict[str, Any]:
    form = without_stages(width)
    form["chains"][0]["groups"][0].update(groups)
    return form


def rotations_without_a_pair(layer: dict[str, Any]) -> dict[str, Any]:
    """Of the largest stride below such a width there is one pair."""
    return {**claimed(HUGE + 1, stages=1, low=HUGE), "mixer": "rotation", "gauge": "free"}


def strides_beyond_the_width(layer: dict[str, Any]) -> dict[str, Any]:
    return claimed(64, stages=7, low=1)


def a_table_that_is_not_there(layer: dict[str, Any]) -> dict[str, Any]:
    return claimed(HUGE, stages=1, order="table")


def outputs_that_no_chain_has(layer: dict[str, Any]) -> dict[str, Any]:
    return {**claimed(64, stages=1), "out_features": HUGE}


def stages_in_words(layer: dict[str, Any]) -> dict[str, Any]:
    return claimed(64, stages="1")


SPM_CLAIMS = [
    *(rotations_without_a_pair, strides_beyond_the_width, a_table_that_is_not_there),
    *(outputs_that_no_chain_has, stages_in_words),
]


@pytest.mark.parametrize("claim", SPM_CLAIMS)
def test_an_spm_that_lies_is_damaged_before_it_costs_anything(
    tmp_path: Path, claim: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    layer = manifest["layers"][0]
    layer["form"] = claim(layer)
    layer["shape"] = [layer["form"]["out_features"], layer["form"]["in_features"]]
    kind, numbers = ("angles", torch.zeros(1)) if layer["form"]["mixer"] == "rotation" else ("off_diagonal", None)
    groups = layer["form"]["chains"][0]["groups"]
    numbers = torch.zeros(int(groups[0]["stages"]), 64) if numbers is None else numbers
    layer["codecs"] = {f"0.{kind}": "float32"}
    save_file({f"w.spm.0.{kind}": numbers}, path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


MANIFESTS: list[tuple[str, dict[str, Any]]] = [
    ("version '6.n7'", {"version": "6\n7"}),
    ("version 6.0", {"version": 6.0}),
    ("version True", {"version": True}),
    ("version 0", {"version": 0}),
    ("a part of the name 'x+", {"shards": ["x" * 5000]}),
    ("a part of the name 7", {"shards": [7]}),
]


@pytest.mark.parametrize(("told", "change"), MANIFESTS)
def test_a_manifest_that_lies_is_one_line(tmp_path: Path, told: str, change: dict[str, Any]) -> None:
    path = fitted_artifact(tmp_path)
    save_file(load_file(path), path, metadata={"spm_compress": json.dumps({**manifest_in(path), **change})})
    with pytest.raises(ArtifactError, match=f"its manifest is damaged .*{told}") as refused:
        read_artifact(path)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("change", [{"names": "w"}, {"names": [7]}, {"steps": "1"}, {"shape": [64.0, 64]}])
def test_an_entry_of_a_layer_is_of_its_types(tmp_path: Path, change: dict[str, Any]) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    manifest["layers"][0].update(change)
    save_file(load_file(path), path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


def test_a_low_rank_that_is_too_large_is_not_multiplied_out(tmp_path: Path) -> None:
    save_file({"w": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.spm.safetensors"
    stored = StoredOperator.of(
        Operator(LowRank(1 << 19, 1 << 19, 1), {"left": torch.ones(1 << 19, 1), "right": torch.ones(1, 1 << 19)})
    )
    layer = FittedLayer(("w",), (1 << 19, 1 << 19), "F32", "0" * 64, 0.5, 0.5, 1, 0, "svd", stored)
    write_artifact(Artifact({"path": "model.safetensors", "files": {}}, {}, {}, (layer,), (), {}), path)
    with pytest.raises(SourceError, match=r"the dense w would take 1,024\.0 GiB; .* SPM_COMPRESS_MAX_GIB=1025"):
        expand(read_artifact(path))


def unknown_form(layer: dict[str, Any]) -> None:
    layer["form"]["kind"] = "magic"


def unknown_part(layer: dict[str, Any]) -> None:
    layer["form"]["parts"][1]["kind"] = "magic"


def form_that_is_no_name(layer: dict[str, Any]) -> None:
    layer["form"]["kind"] = ["spm"]


def unknown_codec(layer: dict[str, Any]) -> None:
    layer["codecs"]["1.left"] = "float8\nmagic"


def codec_that_is_no_name(layer: dict[str, Any]) -> None:
    layer["codecs"]["1.left"] = {"name": "float32"}


def codec_of_another_dtype(layer: dict[str, Any]) -> None:
    layer["codecs"]["1.left"] = "float16"


def codec_that_is_missing(layer: dict[str, Any]) -> None:
    del layer["codecs"]["1.left"]


def codecs_that_are_a_list(layer: dict[str, Any]) -> None:
    layer["codecs"] = list(layer["codecs"])


def sum_in_a_sum(layer: dict[str, Any]) -> None:
    """With the names that the arrays of such a sum would have, so that nothing else is wrong."""
    inner = layer["form"]
    layer["form"] = {"kind": "sum", "parts": [inner, inner["parts"][1]]}
    layer["codecs"] = {
        **{f"0.{name}": codec for name, codec in layer["codecs"].items()},
        **dict.fromkeys(("1.left", "1.right"), "float32"),
    }


def sums_without_end(layer: dict[str, Any]) -> None:
    for _ in range(100):
        layer["form"] = {"kind": "sum", "parts": [layer["form"], layer["form"]["parts"][1]]}


def sum_of_one(layer: dict[str, Any]) -> None:
    layer["form"]["parts"].pop()


def sum_of_very_many(layer: dict[str, Any]) -> None:
    layer["form"]["parts"] *= 10_000


def sum_of_low_ranks(layer: dict[str, Any]) -> None:
    layer["form"]["parts"][0] = layer["form"]["parts"][1]
    layer["codecs"] |= {"0.left": "float32", "0.right": "float32"}


def sum_the_other_way_round(layer: dict[str, Any]) -> None:
    layer["form"]["parts"].reverse()


def parts_of_two_shapes(layer: dict[str, Any]) -> None:
    layer["form"]["parts"][1]["in_features"] = 32


ATTACKS = [
    *(unknown_form, unknown_part, form_that_is_no_name),
    *(unknown_codec, codec_that_is_no_name, codec_of_another_dtype, codec_that_is_missing, codecs_that_are_a_list),
    *(sum_in_a_sum, sums_without_end, sum_of_one, sum_of_very_many, parts_of_two_shapes),
    *(sum_of_low_ranks, sum_the_other_way_round),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_form_or_a_codec_that_lies_is_one_line(tmp_path: Path, attack: Callable[[dict[str, Any]], None]) -> None:
    path = fitted_artifact(tmp_path, ("sum",))
    manifest, tensors = manifest_in(path), load_file(path)
    assert sorted(manifest["layers"][0]["codecs"]) == sorted(
        name.removeprefix("w.spm.") for name in tensors if ".order." not in name
    )
    attack(manifest["layers"][0])
    if attack is sum_in_a_sum:
        nested = {name.replace("w.spm.", "w.spm.0."): tensor for name, tensor in tensors.items()}
        tensors = nested | {f"w.spm.1.{side}": tensors[f"w.spm.1.{side}"].clone() for side in ("left", "right")}
    save_file(tensors, path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged") as refused:
        read_artifact(path)
    assert len(str(refused.value).splitlines()) == 1
