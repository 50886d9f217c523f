"""An artifact of many bytes is spread over files, and is the same artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from spm_compress.checkpoint import Artifact, KeptTensor, read_artifact, write_artifact
from spm_compress.checkpoint.artifact import MANIFEST_VERSION, artifact_bytes
from spm_compress.errors import ArtifactError, SpmError

GOLDEN = Path(__file__).parent / "golden" / f"v{MANIFEST_VERSION}.spm.safetensors"
LIMIT = 4000


def large() -> Artifact:
    """Return the golden artifact with ten kept tensors of 1200 bytes, three to a shard, and one of 8000."""
    artifact = read_artifact(GOLDEN)
    tensors = {f"kept.{i}": torch.full((300,), float(i)) for i in range(10)} | {"kept.large": torch.ones(2000)}
    kept = tuple(KeptTensor(name, tuple(x.shape), "F32", x.nbytes, "1-D, not a matrix") for name, x in tensors.items())
    return replace(artifact, kept=artifact.kept + kept, tensors={**artifact.tensors, **tensors})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_artifact(large(), tmp_path / "m.spm.safetensors", LIMIT)
    return tmp_path / "m.spm.safetensors"


def shards_of(path: Path) -> list[Path]:
    return sorted(path.parent.glob("m.spm-*.safetensors"))


def test_a_large_artifact_is_read_as_it_was(path: Path) -> None:
    read, meant = read_artifact(path), large()
    assert read.kept == meant.kept
    assert all(torch.equal(read.tensors[name], x) for name, x in meant.tensors.items())
    for layer, same in zip(read.layers, meant.layers, strict=True):
        assert layer.names == same.names
        assert torch.equal(layer.operator.to_dense(), same.operator.to_dense())


def test_no_shard_is_larger_than_asked_for_unless_one_tensor_is(path: Path) -> None:
    held = {}
    for shard in shards_of(path):
        with safe_open(shard, framework="pt") as file:
            held[shard] = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    assert len(held) > 4
    assert all(sum(sizes.values()) <= LIMIT or len(sizes) == 1 for sizes in held.values())
    assert artifact_bytes(path) == sum(each.stat().st_size for each in (path, *held))


def test_it_has_the_same_bytes_every_time(path: Path, tmp_path: Path) -> None:
    before = {each: each.read_bytes() for each in (path, *shards_of(path))}
    write_artifact(large(), path, LIMIT)
    assert {each: each.read_bytes() for each in (path, *shards_of(path))} == before
    assert sorted(each.name for each in tmp_path.iterdir()) == sorted(each.name for each in before)


def test_shards_of_an_artifact_that_is_replaced_go_and_other_files_stay(path: Path) -> None:
    other = path.with_name("m.spm-notes.safetensors")
    other.write_bytes(b"mine")
    assert len(shards_of(path)) > 4
    write_artifact(read_artifact(GOLDEN), path)
    assert shards_of(path) == [other]


class Watched(Mapping[str, Tensor]):
    """Kept tensors that count how many shards lie in the folder when each is read."""

    def __init__(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        self.tensors, self.folder = tensors, folder
        self.seen: list[int] = []

    def __getitem__(self, name: str) -> Tensor:
        self.seen.append(len(list(self.folder.rglob("*.spm-*"))))
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def test_a_shard_is_on_the_disk_before_tensors_of_the_next_but_one_are_read(tmp_path: Path) -> None:
    artifact = large()
    watched = Watched(artifact.tensors, tmp_path)
    write_artifact(replace(artifact, tensors=watched), tmp_path / "m.spm.safetensors", LIMIT)
    assert watched.seen == sorted(watched.seen)
    assert watched.seen[-1] >= 3


def test_a_disk_that_fills_up_leaves_the_old_artifact_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {each: each.read_bytes() for each in (path, *shards_of(path))}
    artifact = large()

    class Failing(Watched):
        def __getitem__(self, name: str) -> Tensor:
            if name == "kept.8":
                raise OSError(28, "No space left on device")
            return self.tensors[name] + 1

    with pytest.raises(SpmError, match=r"m\.spm\.safetensors: cannot be written \(No space left on device\)"):
        write_artifact(replace(artifact, tensors=Failing(artifact.tensors, path.parent)), path, LIMIT)
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("shard", "line"),
    [
        ("../m.spm-0123456789abcdef.safetensors", r"lies outside its folder; such an artifact is not followed"),
        ("/etc/passwd", r"lies outside its folder"),
        ("link.safetensors", r"lies outside its folder"),
        ("absent.safetensors", r"its part 'absent.safetensors' is missing; fetch it beside the artifact"),
        ("empty.safetensors", r"is not a whole safetensors file"),
        (5, r"its manifest is damaged"),
    ],
)
def test_parts_that_are_foreign_or_missing_are_refused(
    tmp_path_factory: pytest.TempPathFactory, shard: object, line: str
) -> None:
    folder = tmp_path_factory.mktemp("artifact")
    outside = tmp_path_factory.mktemp("outside") / "tensors.safetensors"
    save_file({"x": torch.ones(1)}, outside)
    (folder / "link.safetensors").symlink_to(outside)
    (folder / "empty.safetensors").touch()
    with safe_open(GOLDEN, framework="pt") as file:
        manifest = json.loads(file.metadata()["spm_compress"])
    save_file({}, folder / "m.spm.safetensors", metadata={"spm_compress": json.dumps({**manifest, "shards": [shard]})})
    with pytest.raises(ArtifactError, match=line):
        read_artifact(folder / "m.spm.safetensors")
