"""Safetensors files, single, sharded, or in a Hugging Face folder, read one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spm_compress.checkpoint.artifact import ARTIFACT_KEY
from spm_compress.checkpoint.contents import Kind, kind_of
from spm_compress.checkpoint.files import beside, sha256_of
from spm_compress.checkpoint.folders import require_weights
from spm_compress.checkpoint.tensor_info import TensorInfo, input_first
from spm_compress.checkpoint.torch_source import TorchSource, open_torch
from spm_compress.errors import SourceError

__all__ = ["SafetensorsSource", "open_safetensors"]

_INDEX = "model.safetensors.index.json"
_TORCH_INDEX = "pytorch_model.bin.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class SafetensorsSource:
    """A Source of one or more safetensors files.

    path: what the user named; files: tensor name -> file that holds it; config: the Hugging Face config.json.
    """

    path: Path
    files: Mapping[str, Path]
    config: Mapping[str, Any] | None
    graph: Path | None = None

    @property
    def input_first(self) -> Container[str]:
        """Names of weights that are stored as (in_features, out_features)."""
        return input_first(self.files, self.config)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names, without reading values."""
        infos: dict[str, TensorInfo] = {}
        turned = self.input_first
        for path in sorted(set(self.files.values())):
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    piece = file.get_slice(name)
                    shape = tuple(piece.get_shape())
                    infos[name] = TensorInfo(shape[::-1] if name in turned else shape, piece.get_dtype())
        return {name: infos[name] for name in sorted(infos)}

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in its stored dtype; weights as (out_features, in_features)."""
        with _opened(self.files[name]) as file:
            try:
                found: Tensor = file.get_tensor(name)
                return found.T.contiguous() if name in self.input_first else found
            except SafetensorError as error:
                raise SourceError(f"{self.files[name]}: tensor {name!r} cannot be read ({error})") from error

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self.files[name]

    def hashes(self) -> dict[str, str]:
        """Return file name -> SHA-256 of every file of the model."""
        return {path.name: sha256_of(path) for path in sorted(set(self.files.values()))}


def open_safetensors(path: Path, key: str | None = None) -> SafetensorsSource | TorchSource:
    """Open a safetensors file, a sharded index, or a Hugging Face folder, also an old one of torch.save.

    key: which of several models in files of torch.save.
    Raises SourceError, with what to do, for an empty, damaged or incomplete one.
    """
    if path.is_dir():
        return _open_folder(path, key)
    if path.name.endswith(".index.json"):
        return _open_index(path, path, None, key)
    with _opened(path) as file:
        if ARTIFACT_KEY in (file.metadata() or {}):
            raise SourceError(
                f"{path}: is an artifact of spm-compress, fitted already; name the model that it was made from"
            )
    return _checked(SafetensorsSource(path, _names_in(path), None))


def _open_folder(path: Path, key: str | None) -> SafetensorsSource | TorchSource:
    config = _config_in(path)
    for index in (_INDEX, _TORCH_INDEX):
        if (path / index).is_file():
            return _open_index(path, path / index, config, key)
    single = path / _SINGLE
    files = (single,) if single.is_file() else tuple(sorted(path.glob("pytorch_model*.bin")))
    if not files:
        require_weights(path)
        raise SourceError(
            f"{path}: holds no {_SINGLE}, no {_INDEX} and no pytorch_model.bin; name the weights file itself"
        )
    if _are_of_torch(files):
        return open_torch(path, files, config, key)
    return _checked(SafetensorsSource(path, {name: file for file in files for name in _names_in(file)}, config))


def _are_of_torch(files: Iterable[Path]) -> bool:
    """Say who reads the files: what is in them decides, and the first one's name where that says nothing."""
    kinds = [(file, kind_of(file)) for file in files if file.stat().st_size]
    if any(kind is Kind.TORCH for _, kind in kinds):
        return True
    return not any(kind is Kind.SAFETENSORS for _, kind in kinds) and next(iter(files)).suffix != ".safetensors"


def _config_in(folder: Path) -> Mapping[str, Any] | None:
    file = folder / "config.json"
    if not file.is_file():
        return None
    config = _json(file)
    if not isinstance(config, dict):
        raise SourceError(f"{file}: not a JSON object; restore the model's own config.json")
    return config


def _open_index(
    path: Path, index: Path, config: Mapping[str, Any] | None, key: str | None
) -> SafetensorsSource | TorchSource:
    content = _json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise SourceError(f"{index}: has no weight_map of tensor names to files; restore it from the model's origin")
    files: dict[str, Path] = {}
    for name, shard in weight_map.items():
        file = beside(index, shard)
        if file is None:
            raise SourceError(
                f"{index}: shard {shard!r} lies outside the model's folder; such an index is not followed"
            )
        if not file.is_file():
            raise SourceError(f"{index}: names shard {shard!r}, which is missing; fetch it beside the index")
        files[name] = file
    shards = tuple(sorted(set(files.values())))
    is_of_torch = bool(shards) and _are_of_torch(shards)
    source = open_torch(path, shards, config, key) if is_of_torch else SafetensorsSource(path, files, config)
    held = {file: set() if is_of_torch else set(_names_in(file)) for file in shards}
    if is_of_torch:
        for name in source.tensors():
            held[source.place(name)].add(name)
    for name, file in files.items():
        if name not in held[file]:
            raise SourceError(f"{file}: does not hold tensor {name!r} that {index.name} places there")
    return source if isinstance(source, TorchSource) else _checked(source)


def _checked(source: SafetensorsSource) -> SafetensorsSource:
    if not source.files:
        raise SourceError(f"{source.path}: holds no tensors; there is nothing to compress")
    return source


def _names_in(path: Path) -> dict[str, Path]:
    with _opened(path) as file:
        return dict.fromkeys(file.keys(), path)


def _opened(path: Path) -> Any:  # safetensors has no type for it
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: is empty; fetch or save the model again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        kind = kind_of(path)  # raises what it is, if that is known
        if kind is not None and kind is not Kind.SAFETENSORS:
            raise SourceError(f"{path}: is {kind.value}, not a safetensors file; name that file itself") from error
        raise SourceError(
            f"{path}: is not a whole safetensors file ({error}); fetch or save the model again"
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise SourceError(f"{path}: is not readable as JSON ({error}); restore it from the model's origin") from error
