"""The names under which an artifact stores tensors never meet, whatever the model calls its own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from spm_compress.checkpoint import Artifact, FittedLayer, KeptTensor, read_artifact, write_artifact
from spm_compress.checkpoint.artifact import MANIFEST_VERSION
from spm_compress.checkpoint.files import write_tensors
from spm_compress.errors import ArtifactError, SpmError

GOLDEN = read_artifact(Path(__file__).parent / "golden" / f"v{MANIFEST_VERSION}.spm.safetensors")
LAYERS = {layer.name: layer for layer in GOLDEN.layers}
# Of a table, a plain one, a sum with a low-rank term, a low rank alone with a bias correction.
KINDS = [LAYERS[name] for name in ("random.weight", "canonical.weight", "sum.weight", "low_rank.weight")]
PIECES = [".spm", ".0", ".1", ".off_diagonal", ".diagonal", ".scales", ".order", ".left", "_1", ".bias_correction"]
NAMES = st.builds(lambda first, rest: first + "".join(rest), st.sampled_from("Wab"), st.lists(st.sampled_from(PIECES)))
ODD = st.sampled_from(["", "__metadata__", "__metadata___1", "/", "a/b", "\ud800", "?", "\x1b[2J", "\n", "x" * 3000])


def artifact_of(kept: list[str], layers: list[tuple[str, FittedLayer]]) -> Artifact:
    tensors = {name: torch.full((3,), float(i)) for i, name in enumerate(kept)}
    entries = tuple(KeptTensor(name, (3,), "F32", 12, "excluded") for name in kept)
    fitted = tuple(replace(layer, names=(name,)) for name, layer in layers)
    return replace(GOLDEN, layers=fitted, kept=entries, tensors=tensors, recovery=None, curves=None)


def assert_same(found: Artifact, expected: Artifact) -> None:
    assert found.kept == expected.kept
    assert list(found.tensors) == list(expected.tensors)
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor)
    assert [layer.names for layer in found.layers] == [layer.names for layer in expected.layers]
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert ours.form == theirs.form
        assert torch.equal(ours.operator.to_dense(), theirs.operator.to_dense())
        assert (ours.bias_correction is None) == (theirs.bias_correction is None)
        assert ours.bias_correction is None or torch.equal(ours.bias_correction, theirs.bias_correction)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.one_of(NAMES, ODD), unique=True, max_size=6),
    st.lists(
        st.tuples(st.one_of(NAMES, ODD), st.sampled_from(KINDS)), min_size=1, max_size=4, unique_by=lambda x: x[0]
    ),
    st.sampled_from([1, 1 << 29]),
)
@example(["W.spm.0.off_diagonal", "W.spm_1.0.off_diagonal", "W.spm_2.bias_correction"], [("W", KINDS[1])], 1 << 29)
@example(["W.spm.bias_correction"], [("W", KINDS[1])], 1 << 29)
@example(["W.spm.left"], [("W", KINDS[3])], 1 << 29)
@example(["W.spm.1.left"], [("W", KINDS[2])], 1 << 29)
@example(["W.spm.0.order.0"], [("W", KINDS[0])], 1 << 29)
@example(["__metadata__", "__metadata___1"], [("__metadata__", KINDS[3]), ("", KINDS[1])], 1)
@example([], [("W", KINDS[0]), ("W.spm.0", KINDS[0]), ("W.spm", KINDS[3])], 1 << 29)
def test_whatever_names_look_like_ours_what_is_written_is_read_back(
    tmp_path: Path, kept: list[str], layers: list[tuple[str, FittedLayer]], shard_bytes: int
) -> None:
    expected = artifact_of([name for name in kept if name not in dict(layers)], layers)
    write_artifact(expected, tmp_path / "a.spm.safetensors", shard_bytes)
    assert_same(read_artifact(tmp_path / "a.spm.safetensors"), expected)


def manifest_of(path: Path) -> dict[str, list[dict[str, object]]]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, list[dict[str, object]]] = json.loads(file.metadata()["spm_compress"])
    return found


def test_another_name_is_taken_and_said_only_where_one_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.spm.safetensors"
    write_artifact(artifact_of(["W.spm.0.off_diagonals", "b", "W.spm"], [("W", KINDS[1])]), path)
    assert not any(
        "key" in entry or "stem" in entry for part in ("kept", "layers") for entry in manifest_of(path)[part]
    )
    write_artifact(
        artifact_of(["W.spm.bias_correction", "W.spm_1.bias_correction", "__metadata__"], [("W", KINDS[1])]), path
    )
    assert manifest_of(path)["layers"][0]["stem"] == "W.spm_2"
    assert [entry.get("key") for entry in manifest_of(path)["kept"]] == [None, None, "__metadata___1"]


def test_a_kept_tensor_is_never_read_as_an_array_of_a_layer(tmp_path: Path) -> None:
    path = tmp_path / "a.spm.safetensors"
    write_artifact(artifact_of(["b"], [("W", KINDS[1])]), path)
    manifest = manifest_of(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    off_diagonal = next(name for name in tensors if name.startswith("W.spm.0."))
    manifest["kept"].append(
        {"name": off_diagonal, "shape": list(tensors[off_diagonal].shape), "dtype": "F32", "bytes": 4, "reason": "-"}
    )
    write_tensors(tensors, path, {"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="its manifest is damaged"):
        read_artifact(path)


@pytest.mark.parametrize("name", ["__metadata__", "\ud800"])
def test_a_name_that_safetensors_cannot_have_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpmError, match="safetensors cannot have a tensor of this name"):
        write_tensors({name: torch.ones(2)}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())
