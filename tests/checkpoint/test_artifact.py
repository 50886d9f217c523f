"""Artifacts are read back as they were written, and damaged ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spm_compress.checkpoint import find_artifact, read_artifact, write_artifact
from spm_compress.checkpoint.artifact import MANIFEST_VERSION
from spm_compress.errors import ArtifactError, SpmError

GOLDEN = Path(__file__).parent / "golden" / f"v{MANIFEST_VERSION}.spm.safetensors"


def opened(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["spm_compress"]), load_file(path)


def saved(path: Path, manifest: Any, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path, metadata={"spm_compress": json.dumps(manifest)})
    return path


@pytest.mark.parametrize("version", range(1, MANIFEST_VERSION + 1))
def test_the_golden_artifact_of_every_version_is_still_read(version: int) -> None:
    artifact = read_artifact(GOLDEN.with_name(f"v{version}.spm.safetensors"))
    expected = load_file(GOLDEN.with_name(f"v{version}.expected.safetensors"))
    assert {layer.name for layer in artifact.layers} == set(expected)
    for layer in artifact.layers:
        torch.testing.assert_close(layer.operator.to_dense(), expected[layer.name], rtol=1e-4, atol=1e-5)
    assert artifact.layers[0].names == ("canonical.weight", "tied.weight")
    assert artifact.kept[0].reason == "excluded"
    assert artifact.tensors["kept"].dtype == torch.float16


@pytest.mark.parametrize("version", range(1, MANIFEST_VERSION))
def test_an_older_artifact_is_written_as_one_of_this_version(version: int, tmp_path: Path) -> None:
    old = read_artifact(GOLDEN.with_name(f"v{version}.spm.safetensors"))
    write_artifact(old, tmp_path / "new.spm.safetensors")
    new = read_artifact(tmp_path / "new.spm.safetensors")
    assert opened(tmp_path / "new.spm.safetensors")[0]["version"] == MANIFEST_VERSION
    assert new.kept == old.kept
    for before, after in zip(old.layers, new.layers, strict=True):
        assert (after.names, after.form, after.stored.codecs) == (before.names, before.form, before.stored.codecs)
        assert torch.equal(after.operator.to_dense(), before.operator.to_dense())


def test_reading_and_writing_gives_the_same_bytes(tmp_path: Path) -> None:
    write_artifact(read_artifact(GOLDEN), tmp_path / "again.spm.safetensors")
    assert (tmp_path / "again.spm.safetensors").read_bytes() == GOLDEN.read_bytes()


def test_others_may_read_it_as_any_new_file(tmp_path: Path) -> None:
    write_artifact(read_artifact(GOLDEN), tmp_path / "a.spm.safetensors")
    (tmp_path / "new").touch()
    assert (tmp_path / "a.spm.safetensors").stat().st_mode == (tmp_path / "new").stat().st_mode


def test_stored_bytes_are_those_in_the_file() -> None:
    artifact, (_, tensors) = read_artifact(GOLDEN), opened(GOLDEN)
    for layer in artifact.layers:
        in_file = sum(array.nbytes for name, array in tensors.items() if name.startswith(f"{layer.name}.spm."))
        assert layer.stored_bytes == in_file
    random = next(layer for layer in artifact.layers if layer.name == "random.weight")
    assert sum(table.nbytes for table in random.form.tables.values()) == 3 * 18 * 4


def test_forms_bias_corrections_and_errors_of_outputs_are_read_back() -> None:
    layers = {layer.name: layer for layer in read_artifact(GOLDEN).layers}
    kinds = {name: layer.form.kind for name, layer in layers.items()}
    assert kinds == {
        **dict.fromkeys(("canonical.weight", "wide.weight", "tall.weight", "rotation.weight"), "spm"),
        **dict.fromkeys(("general.weight", "random.weight", "half.weight", "half_rotation.weight"), "spm"),
        **dict.fromkeys(("sum.weight", "half_sum.weight"), "sum"),
        **{"low_rank.weight": "low_rank", "dense.weight": "dense", "monarch.weight": "monarch"},
        **dict.fromkeys(("angles.weight", "tall_angles.weight", "turns.weight"), "spm"),
        **{"angles_sum.weight": "sum", "two_bits.weight": "low_rank", "signs.weight": "monarch"},
        **dict.fromkeys(("blocks.weight", "ternary.weight", "table.weight"), "dense"),
    }
    term, alone, plain = layers["sum.weight"], layers["low_rank.weight"], layers["canonical.weight"]
    assert term.form.shapes["1.left"] == (40, 3)
    assert alone.form.shapes == {"left": (40, 2), "right": (2, 24)}
    assert alone.bias_correction is not None and alone.bias_correction.tolist() == list(range(40))
    assert (alone.output_error, alone.svd_output_error) == (0.4, 0.5)
    assert (plain.output_error, plain.svd_output_error, plain.bias_correction) == (None, None, None)


def test_codecs_and_why_one_was_refused_are_read_back() -> None:
    layers = {layer.name: layer for layer in read_artifact(GOLDEN).layers}
    tensors = opened(GOLDEN)[1]
    half = ("half.weight", "half_rotation.weight", "half_sum.weight", "dense.weight")
    assert {name for name, layer in layers.items() if layer.stored.codec.name == "float16"} == set(half)
    few = {
        **{"angles.weight": "integer(5,row)", "tall_angles.weight": "integer(8,row)", "turns.weight": "integer(6,row)"},
        **{"angles_sum.weight": "integer(4,row)", "two_bits.weight": "integer(2,column)"},
        **{"blocks.weight": "integer(4,32)", "ternary.weight": "ternary(row)", "signs.weight": "sign(matrix)"},
        "table.weight": "integer(3,row)",
    }
    assert few.items() <= {name: layer.stored.codec.name for name, layer in layers.items()}.items()
    assert [name for name, layer in layers.items() if layer.is_table] == ["table.weight"]
    for layer in (layer for name, layer in layers.items() if name not in few):
        for name, codec in layer.stored.codecs.items():
            stored = tensors[f"{layer.name}.spm.{name}"]
            assert str(stored.dtype) == f"torch.{codec.name}"
            assert codec.name == ("float16" if layer.name in half and not name.endswith(".scales") else "float32")
            assert torch.equal(layer.operator.arrays[name], stored.float())
    reasons = {name: layer.reason for name, layer in layers.items() if layer.reason}
    assert reasons == {"general.weight": "float16 cannot hold the numbers; stored in float32"}


def test_a_later_version_asks_for_an_upgrade(tmp_path: Path) -> None:
    manifest, tensors = opened(GOLDEN)
    with pytest.raises(ArtifactError, match=rf"version {MANIFEST_VERSION + 1} is newer .* upgrade"):
        read_artifact(saved(tmp_path / "a", {**manifest, "version": MANIFEST_VERSION + 1}, tensors))


def first(manifest: dict[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = manifest["layers"][0]
    return layer


@pytest.mark.parametrize(
    "damage",
    [
        lambda m: m.pop("layers"),
        lambda m: m.pop("version"),
        lambda m: m.update(version="1"),
        lambda m: m.update(kept=3),
        lambda m: first(m).update(names=["absent.weight"]),
        lambda m: first(m).update(shape=[24, 25]),
        lambda m: first(m).pop("form"),
        lambda m: first(m)["form"].pop("kind"),
        lambda m: first(m)["form"].update(kind="low_rank"),
        lambda m: first(m)["form"].update(mixer="magic"),
        lambda m: first(m)["form"].update(gauge="free"),
        lambda m: first(m)["form"].update(chains=[]),
        lambda m: first(m)["form"]["chains"][0].update(width=10**9),
        lambda m: first(m)["form"]["chains"][0].update(width=-3),
        lambda m: first(m)["form"]["chains"][0]["groups"][1].update(order=[2, 0]),
        lambda m: first(m)["form"]["chains"][0]["groups"][1].update(order="table"),
        lambda m: first(m)["form"]["chains"][0]["groups"][1].update(order={"shuffle": 5}),
        lambda m: first(m)["form"]["chains"][0]["groups"][0].update(order=[1, 2**64]),
        lambda m: first(m)["form"]["chains"][0]["groups"][0].update(stages=60),
        lambda m: first(m)["form"]["chains"][0].update(scales=[0, 1]),
        lambda m: m["kept"][0].update(name="other"),
    ],
)
def test_a_damaged_manifest_is_refused(damage: Callable[[dict[str, Any]], Any], tmp_path: Path) -> None:
    manifest, tensors = opened(GOLDEN)
    damage(manifest)
    with pytest.raises(ArtifactError, match="manifest"):
        read_artifact(saved(tmp_path / "a", manifest, tensors))


def places(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, inner in items for place in [(value, key), *places(inner)]]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_mutilation_escapes_as_another_error(tmp_path: Path, data: st.DataObject) -> None:
    manifest, tensors = opened(GOLDEN)
    container, key = data.draw(st.sampled_from(places(manifest)))
    container[key] = data.draw(
        st.one_of(st.none(), st.integers(-9, 99), st.floats(), st.text(max_size=3), st.just([]), st.just({}))
    )
    try:
        artifact = read_artifact(saved(tmp_path / "a", manifest, tensors))
    except ArtifactError:
        return
    for layer in artifact.layers:  # what is accepted can be used
        assert layer.operator.to_dense().shape == layer.shape


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "plain.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(GOLDEN.read_bytes()[:-40])
    (tmp_path / "empty.safetensors").touch()
    for name, words in [("plain", "not an spm-compress artifact"), ("cut", "not a whole"), ("empty", "not a whole")]:
        with pytest.raises(ArtifactError, match=words):
            read_artifact(tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtifactError, match="no such artifact"):
        read_artifact(tmp_path / "absent.safetensors")


def test_the_one_artifact_of_a_folder_is_found(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="`fit_model`"):
        find_artifact(tmp_path)
    (tmp_path / "a.spm.safetensors").touch()
    assert find_artifact(tmp_path) == tmp_path / "a.spm.safetensors"
    (tmp_path / "b.spm.safetensors").touch()
    with pytest.raises(ArtifactError, match=r"a\.spm\.safetensors, b\.spm\.safetensors"):
        find_artifact(tmp_path)


def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(SpmError, match="cannot be written"):
        write_artifact(read_artifact(GOLDEN), tmp_path / "absent" / "a.spm.safetensors")
    blocked = tmp_path / "folder.spm.safetensors"
    blocked.mkdir()
    with pytest.raises(SpmError, match="cannot be written"):
        write_artifact(read_artifact(GOLDEN), blocked)
    assert list(tmp_path.iterdir()) == [blocked]
