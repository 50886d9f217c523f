"""GGUF files of llama.cpp: quantized tensors are read as the float32 that they decode to."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.gguf_header import StoredTensor, read_header
from spm_compress.checkpoint.limits import require_room
from spm_compress.checkpoint.tensor_info import DECODED, DTYPES, TensorInfo
from spm_compress.errors import SourceError

__all__ = ["GgufSource", "open_gguf"]

_PLAIN: Mapping[str, torch.dtype] = {
    **DTYPES,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


@dataclass(frozen=True)
class GgufSource:
    """A Source of one GGUF file; dtypes of quantized tensors are GGUF's (Q4_K, Q8_0, ...)."""

    path: Path
    config: Mapping[str, Any] | None = None
    input_first: Container[str] = ()
    graph: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return open_gguf, (self.path,)  # another process reads the header itself

    @cached_property
    def _stored(self) -> dict[str, tuple[StoredTensor, str]]:
        gguf = _gguf(self.path)
        types: dict[int, str] = {}

        def bytes_of(name: str, kind: int, shape: tuple[int, ...]) -> int:
            if kind not in types:
                types[kind] = self._type_name(name, kind)
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            if (shape[-1] if shape else 1) % block:
                raise ValueError(f"rows of tensor {name!r} are no whole blocks of {types[kind]}")
            return math.prod(shape) // int(block) * int(size)

        found = {each.name: (each, types[each.type]) for each in read_header(self.path, bytes_of)}
        if not found:
            raise SourceError(f"{self.path}: holds no tensors; there is nothing to compress")
        return found

    def _type_name(self, name: str, kind: int) -> str:
        known: dict[int, str] = {each.value: each.name for each in _gguf(self.path).GGMLQuantizationType}
        found = known.get(kind, f"number {kind}")
        if found in _PLAIN or (found in DECODED and _decodes(_gguf(self.path), kind)):
            return found
        raise SourceError(
            f"{self.path}: tensor {name!r} is of type {found}, which the gguf package here does not decode; "
            "upgrade gguf, or take the model in another quantization"
        )

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names, without reading values."""
        return {name: TensorInfo(stored.shape, dtype) for name, (stored, dtype) in self._stored.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU: quantized ones as float32, weights as (out_features, in_features)."""
        stored, dtype = self._stored[name]
        plain, numbers = _PLAIN.get(dtype), math.prod(stored.shape)
        require_room(self.path, f"tensor {name!r}", 4 * numbers if plain is None else stored.bytes)
        raw = np.fromfile(self.path, np.uint8, stored.bytes, offset=stored.offset)
        if len(raw) < stored.bytes:
            raise SourceError(f"{self.path}: tensor {name!r} reaches beyond its end; fetch the model again")
        if plain is not None:
            return torch.from_numpy(raw).view(plain).reshape(stored.shape)
        gguf = _gguf(self.path)
        rows = raw.reshape(numbers // stored.shape[-1], -1)
        with np.errstate(all="ignore"):  # scales that are not finite are told by name, as in any other source
            decoded = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(stored.type))
        return torch.from_numpy(np.ascontiguousarray(decoded, np.float32)).reshape(stored.shape)

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        del name
        return self.path

    def hashes(self) -> dict[str, str]:
        """Return file name -> SHA-256."""
        return {self.path.name: sha256_of(self.path)}


def open_gguf(path: Path) -> GgufSource:
    """Open a GGUF file.

    Raises SourceError where the gguf package is missing or does not decode a type, and for a damaged or empty file.
    """
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: is empty; fetch or save the model again")
    source = GgufSource(path)
    source.tensors()
    return source


def _gguf(path: Path) -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise SourceError(
            f"{path}: is a GGUF file, and reading it needs gguf; install it with: pip install 'spm-compress[gguf]'"
        ) from error
    return gguf


def _decodes(gguf: ModuleType, kind: int) -> bool:
    """Whether the package has the way back from a type: it has none for a few that only exist within a computation."""
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    try:
        gguf.quants.dequantize(np.zeros((1, size), np.uint8), gguf.GGMLQuantizationType(kind))
    except NotImplementedError:
        return False
    return True
