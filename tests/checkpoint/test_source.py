"""Sources: single files, shards, folders, and everything that can be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spm_compress import open_source
from spm_compress.errors import SourceError


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "one.safetensors")
    save_file({"b": torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / "two.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps(index))
    return path


def test_a_sharded_index_is_one_model(sharded: Path) -> None:
    for path in (sharded, sharded.parent):
        source = open_source(path)
        infos = source.tensors()
        assert {name: (info.shape, info.dtype) for name, info in infos.items()} == {
            "a": ((2, 3), "F32"),
            "b": ((4,), "BF16"),
        }
        assert torch.equal(source.read("a"), torch.ones(2, 3))
        assert set(source.hashes()) == {"one.safetensors", "two.safetensors"}


def test_a_folder_brings_its_config(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    config = open_source(tmp_path).config
    assert config is not None
    assert config["architectures"] == ["BertModel"]


@pytest.mark.parametrize("shard", ["../one.safetensors", "/etc/passwd", "link.safetensors", "sub/../../x.safetensors"])
def test_a_shard_outside_the_folder_is_not_followed(
    sharded: Path, shard: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "x.safetensors"
    save_file({"a": torch.ones(2)}, outside)
    (sharded.parent / "link.safetensors").symlink_to(outside)
    sharded.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(SourceError, match="outside the model's folder"):
        open_source(sharded)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not readable as JSON"),
        ("[]", "no weight_map"),
        ('{"weight_map": {"a": 3}}', "no weight_map"),
        ('{"weight_map": {"a": "three.safetensors"}}', "which is missing"),
        ('{"weight_map": {"z": "one.safetensors"}}', "does not hold tensor 'z'"),
        ('{"weight_map": {}}', "holds no tensors"),
    ],
)
def test_a_damaged_index_is_refused(sharded: Path, content: str, words: str) -> None:
    sharded.write_text(content)
    with pytest.raises(SourceError, match=words) as error:
        open_source(sharded)
    assert "\n" not in str(error.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(64)}, tmp_path / "good.safetensors")
    good = (tmp_path / "good.safetensors").read_bytes()
    for name, content, words in [
        ("empty.safetensors", b"", "is empty"),
        ("cut.safetensors", good[:-7], "not a whole safetensors file"),
        ("junk.safetensors", b"\xff" * 300, "not a whole safetensors file"),
        ("bomb.safetensors", (2**62).to_bytes(8, "little") + good[8:], "not a whole safetensors file"),
        ("model.pkl", b"some words", "not a format"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=words):
            open_source(tmp_path / name)
    with pytest.raises(SourceError, match=r"no such file .* near misses: good\.safetensors"):
        open_source(tmp_path / "goods.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SourceError, match=r"holds no model\.safetensors"):
        open_source(tmp_path / "folder")
