"""The artifact `NAME.spm.safetensors`: SPM numbers, tensors left dense, and a manifest that explains them.

One safetensors file. Its metadata has one entry, `spm_compress`, a JSON manifest (version 7; 1 to 6 are read too):
`source` (path, files and their SHA-256, key, factory), `settings`, `versions`, `layers`, `kept`, `recovery`, `curves`
and `shards`: names of the files beside it, `NAME.spm-<digest>.safetensors`, that hold the tensors where they are too
many for one.
A fitted weight W has every array of its form under `W.spm.<array>`, or `W.spm.<array>.<part>` where a codec has several
parts, index tables likewise, and what its bias is to be raised by under `W.spm.bias_correction`; a kept tensor has its
own name. Where two of these would meet, an entry of the manifest says which name was taken instead: `stem` of a
layer, `key` of a kept tensor (`keys.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spm_compress.checkpoint.entries import (
    FittedLayer,
    KeptTensor,
    kept_json,
    layer_json,
    layer_tensors,
    read_kept,
    read_layer,
)
from spm_compress.checkpoint.files import beside, save_tensors, sha256_of, write_tensors, write_whole_set
from spm_compress.checkpoint.keys import BIAS_CORRECTION, Keys, choose_keys
from spm_compress.checkpoint.older import LAST_OLDER, modern_layer
from spm_compress.errors import ArtifactError

__all__ = [
    "ARTIFACT_KEY",
    "MANIFEST_VERSION",
    "SHARD_BYTES",
    "SUFFIX",
    "Artifact",
    "FittedLayer",
    "KeptTensor",
    "artifact_bytes",
    "find_artifact",
    "read_artifact",
    "write_artifact",
]

# 2: orders can be shuffles; 3: low-rank terms, bias corrections, errors of outputs; 4: what a recovery changed;
# 5: shards, curves; 6: forms and codecs; 7: codecs of few bits
MANIFEST_VERSION = 7
# Of one of the files that a large artifact is made of; saving takes twice as much memory for a moment.
SHARD_BYTES = 1 << 29
SUFFIX = ".spm.safetensors"
# Of a file, in bytes, on every file system that is common.
_LONGEST_NAME = 255
ARTIFACT_KEY = "spm_compress"


@dataclass(frozen=True)
class Artifact:
    """A compressed model: fitted layers, kept tensors with their values, and where it came from.

    source: {"path", "files"}, where it matters "key" (of the model in a torch file) and "factory"; "live": whether
    torch can train it, and of an ONNX model or a program "untrainable": why it cannot; settings and versions as in the
    manifest; tensors: the kept values, which may be read only when asked for.
    recovery: how the model was trained after the fit, if it was; its "retrained" names the kept tensors that are no
    longer the source's.
    curves: name of a weight -> {"stages", "bytes", "error"} at every size that was tried, where sizes were planned.
    """

    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    layers: tuple[FittedLayer, ...]
    kept: tuple[KeptTensor, ...]
    tensors: Mapping[str, Tensor]
    recovery: Mapping[str, Any] | None = None
    curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None

    @property
    def retrained(self) -> dict[str, Tensor]:
        """Kept tensors that a recovery changed, by name."""
        return {name: self.tensors[name] for name in (self.recovery or {}).get("retrained", ())}


def write_artifact(artifact: Artifact, path: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write the artifact; the same artifact gives the same bytes.

    More than shard_bytes of tensors go to several files beside it, each written before the next one's tensors are read;
    those of an artifact that stood there before are removed. Raises SpmError if it cannot be written.
    """
    size = sum(kept.bytes for kept in artifact.kept) + sum(layer.stored_bytes for layer in artifact.layers)
    shards: list[str] = []
    if size <= shard_bytes:
        write_tensors(dict(_tensors(artifact)), path, _metadata(artifact, shards))
    else:
        with write_whole_set(path) as folder:
            shards += [_write_shard(tensors, folder, path) for tensors in _pieces(artifact, shard_bytes)]
            save_tensors({}, folder / path.name, _metadata(artifact, shards))
    for name, old in _shards_beside(path).items():
        if name not in shards:
            old.unlink(missing_ok=True)


def artifact_bytes(path: Path) -> int:
    """Return the size on disk of an artifact that can be read, with the files that it is spread over."""
    with safe_open(path, framework="pt") as file:
        shards = json.loads(file.metadata()[ARTIFACT_KEY]).get("shards", ())
    return sum(each.stat().st_size for each in (path, *map(path.with_name, shards)))


def _keys(artifact: Artifact) -> Keys:
    layers = ((layer.name, (*layer_tensors(layer), BIAS_CORRECTION)) for layer in artifact.layers)
    return choose_keys([kept.name for kept in artifact.kept], layers)


def _tensors(artifact: Artifact) -> Iterator[tuple[str, Tensor]]:
    keys = _keys(artifact)
    for kept in artifact.kept:
        yield keys.kept[kept.name], artifact.tensors[kept.name].contiguous()
    for layer in artifact.layers:
        for name, tensor in layer_tensors(layer).items():
            yield f"{keys.stems[layer.name]}.{name}", tensor


def _pieces(artifact: Artifact, most: int) -> Iterator[dict[str, Tensor]]:
    """Yield the tensors in order, as many at a time as `most` bytes hold, and one at least."""
    piece: dict[str, Tensor] = {}
    size = 0
    for name, tensor in _tensors(artifact):
        if piece and size + tensor.nbytes > most:
            yield piece
            piece, size = {}, 0
        piece[name] = tensor
        size += tensor.nbytes
    yield piece


def _write_shard(tensors: Mapping[str, Tensor], folder: Path, path: Path) -> str:
    """Write a shard of the artifact at `path` and return its name.

    Named by its content, it never takes the place of one that an artifact still needs.
    """
    scratch = folder / "shard"
    save_tensors(tensors, scratch)
    name = f"{path.name.removesuffix('.safetensors')}-{sha256_of(scratch)[:16]}.safetensors"
    scratch.replace(folder / name)
    return name


def _shards_beside(path: Path) -> dict[str, Path]:
    """Return every file beside `path` that is named as a shard of it."""
    named = re.compile(re.escape(path.name.removesuffix(".safetensors")) + r"-[0-9a-f]{16}\.safetensors")
    return {each.name: each for each in path.parent.iterdir() if named.fullmatch(each.name)}


def _metadata(artifact: Artifact, shards: list[str]) -> dict[str, str]:
    keys = _keys(artifact)
    manifest = {
        "version": MANIFEST_VERSION,
        "versions": artifact.versions,
        "source": artifact.source,
        "settings": artifact.settings,
        "layers": [layer_json(layer, keys.stems[layer.name]) for layer in artifact.layers],
        "kept": [kept_json(kept, keys.kept[kept.name]) for kept in artifact.kept],
        "recovery": artifact.recovery,
        "curves": artifact.curves,
        "shards": shards,
    }
    return {ARTIFACT_KEY: json.dumps(manifest)}


def read_artifact(path: Path) -> Artifact:
    """Read an artifact and check that it is whole.

    Raises ArtifactError for a foreign or damaged file and for a manifest of a later version.
    """
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder; name an artifact in it, *{SUFFIX}")
    if not path.is_file():
        raise ArtifactError(f"{path}: no such artifact; make one with: `fit_model`")
    metadata, tensors = _read_file(path)
    if ARTIFACT_KEY not in metadata:
        raise ArtifactError(f"{path}: is a safetensors file but not an spm-compress artifact; run fit on it first")
    try:
        manifest = json.loads(metadata[ARTIFACT_KEY])
        version = manifest["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: its manifest is damaged ({error}); run fit again") from error
    if type(version) is not int or version < 1:
        raise ArtifactError(f"{path}: its manifest is damaged (version {version!r:.40}); run fit again")
    if version > MANIFEST_VERSION:
        raise ArtifactError(
            f"{path}: manifest version {version} is newer than this program reads (1 to {MANIFEST_VERSION}); "
            "upgrade spm-compress"
        )
    try:
        for shard in manifest.get("shards", ()):
            tensors |= _read_file(_shard_at(path, shard))[1]
        keys = {str(entry["name"]): str(entry.get("key", entry["name"])) for entry in manifest["kept"]}
        # A layer's arrays are never among these: an artifact in which they are is damaged.
        theirs = set(keys.values())
        ours = {key: tensor for key, tensor in tensors.items() if key not in theirs}
        found = Artifact(
            source=dict(manifest["source"]),
            settings=dict(manifest["settings"]),
            versions=dict(manifest["versions"]),
            layers=tuple(_read_layer(entry, ours, version) for entry in manifest["layers"]),
            kept=tuple(read_kept(entry, tensors[keys[entry["name"]]]) for entry in manifest["kept"]),
            tensors={name: tensors[key] for name, key in keys.items()},
            recovery=None if manifest.get("recovery") is None else dict(manifest["recovery"]),
            curves=_read_curves(manifest.get("curves")),
        )
        found.retrained  # noqa: B018 (names that are not there are damage)
        return found
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ArtifactError(f"{path}: its manifest is damaged ({error!r}); run fit again") from error


def _read_file(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors, which stay in the file until they are used."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: is not a whole safetensors file ({error}); run fit again") from error


def _shard_at(path: Path, name: str) -> Path:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME:
        raise ValueError(f"a part of the name {name!r:.40}")
    place = beside(path, name)
    if place is None:
        raise ArtifactError(f"{path}: its part {name!r} lies outside its folder; such an artifact is not followed")
    if not place.is_file():
        raise ArtifactError(f"{path}: its part {name!r} is missing; fetch it beside the artifact, or run fit again")
    return place


def find_artifact(folder: Path) -> Path:
    """Return the one artifact in a folder. Raises ArtifactError, listing them, if there is none or several."""
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArtifactError(f"{folder}: holds no *{SUFFIX}; make one with: `fit_model`")
    names = ", ".join(path.name for path in found)
    raise ArtifactError(f"{folder}: holds several artifacts ({names}); name the one that is meant")


def _read_layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor], version: int) -> FittedLayer:
    return read_layer(*(modern_layer(entry, tensors) if version <= LAST_OLDER else (entry, tensors)))


def _read_curves(entry: Any) -> dict[str, list[dict[str, float]]] | None:
    if entry is None:
        return None
    keys = ("stages", "bytes", "error")
    return {str(name): [{key: point[key] + 0 for key in keys} for point in points] for name, points in entry.items()}
