"""Two artifacts side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from spm_compress.checkpoint import read_artifact, write_artifact
from spm_compress.checkpoint.artifact import MANIFEST_VERSION
from spm_compress.errors import ArtifactError
from spm_compress.report import summarize, to_json
from spm_compress.report.difference import compare, difference_json

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden" / f"v{MANIFEST_VERSION}.spm.safetensors"


def test_an_artifact_does_not_differ_from_itself() -> None:
    found = compare(GOLDEN, GOLDEN)
    assert found.layers == {}
    assert found.settings == {}
    assert found.same == len(read_artifact(GOLDEN).layers)
    assert all(pair.a == pair.b for pair in found.totals.values())


def test_what_differs_is_said(tmp_path: Path) -> None:
    artifact = read_artifact(GOLDEN)
    first, *rest = artifact.layers
    changed = replace(artifact, layers=(replace(first, error=0.25), *rest[1:]), settings={"stages": 12, "new": True})
    write_artifact(changed, tmp_path / "b.spm.safetensors")
    found = compare(GOLDEN, tmp_path / "b.spm.safetensors")
    assert set(found.layers) == {first.name, rest[0].name}
    a, b = found.layers[first.name]
    assert a is not None
    assert b is not None
    assert (a.error, b.error) == (first.error, 0.25)
    assert found.layers[rest[0].name][1] is None
    assert found.settings == {"stages": ("9", "12"), "new": (None, "true")}
    count = found.totals["weights replaced"]
    assert (count.a, count.b) == (len(artifact.layers), len(artifact.layers) - 1)
    (tmp_path / "a.json").write_text(json.dumps(to_json(summarize(artifact, GOLDEN))))
    report = compare(tmp_path / "a.json", tmp_path / "b.spm.safetensors")
    assert report.layers == found.layers
    assert report.totals == found.totals
    assert report.settings is None


def test_another_form_is_said_in_words(tmp_path: Path) -> None:
    artifact = read_artifact(GOLDEN)
    layers = {layer.name: layer for layer in artifact.layers}
    other = replace(layers["low_rank.weight"], names=layers["sum.weight"].names)
    rest = tuple(layer for layer in artifact.layers if layer.name != "sum.weight")
    write_artifact(replace(artifact, layers=(*rest, other)), tmp_path / "b.spm.safetensors")
    found = compare(GOLDEN, tmp_path / "b.spm.safetensors")
    assert set(found.layers) == {"sum.weight"}
    a, b = found.layers["sum.weight"]
    assert a is not None
    assert b is not None
    assert (a.form, b.form) == ("sum: stages 5, rank 3", "low_rank: rank 2")
    said = difference_json(found)
    assert said["schema"] == "spm-compress/diff/3"
    assert said["layers"]["sum.weight"]["b"]["form"] == "low_rank: rank 2"


def test_other_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(ArtifactError, match="is no spm-compress/report/3"):
        compare(tmp_path / "a.json", GOLDEN)
