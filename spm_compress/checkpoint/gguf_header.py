"""The header of a GGUF file: names, shapes, types and places of its tensors, checked against the file.

Read here and not by the gguf package, whose reader makes an object of every element of every array, and goes on beyond
the end of a file that claims to have more: a few bytes of a stranger's file could fill the memory. Metadata (tokens,
templates) is skipped; of its numbers only the alignment of the data and the count of a split model's files are needed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from spm_compress.errors import SourceError

__all__ = ["StoredTensor", "read_header"]

_VERSIONS = (2, 3)
# Bytes of a value of metadata by its type: integers, floats and bool; then the two whose size stands in the file.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT16, _UINT32, _STRING, _ARRAY = 2, 4, 8, 9
_ALIGNMENT = 32
_MOST_DIMENSIONS = 4
_DEEPEST = 8  # arrays of arrays


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in the file: shape as (out_features, in_features), GGUF's type, and where its `bytes` bytes begin."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    bytes: int


def read_header(path: Path, bytes_of: Callable[[str, int, tuple[int, ...]], int]) -> tuple[StoredTensor, ...]:
    """Return the tensors of a GGUF file.

    bytes_of: what a tensor of this name, type and shape occupies. Raises SourceError for a damaged or cut file, an old
    version, a file in the other byte order, and one of several files.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            return _Walk(file, size).tensors(bytes_of)
    except _SplitError as error:
        raise SourceError(
            f"{path}: is one of {error.files} files of a split model; put them together first with: "
            "llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        ) from error
    except (ValueError, struct.error) as error:
        raise SourceError(f"{path}: is not a whole GGUF file ({error}); fetch the model again") from error


class _SplitError(Exception):
    """The file is one of several."""

    def __init__(self, files: int) -> None:
        super().__init__(files)
        self.files = files


class _Walk:
    """A walk along the header; nothing is read or skipped beyond the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._size = size

    def tensors(self, bytes_of: Callable[[str, int, tuple[int, ...]], int]) -> tuple[StoredTensor, ...]:
        self._bytes(4)
        version = self._number("<I")
        if version not in _VERSIONS:
            is_other_order = version & 0xFFFF == 0
            what = "of the other byte order" if is_other_order else f"of version {version}, which is not read"
            raise ValueError(f"it is {what}")
        count, entries = self._number("<Q"), self._number("<Q")
        alignment, files = _ALIGNMENT, 1
        for _ in range(entries):
            name, kind = self._text(), self._number("<I")
            if name == "general.alignment" and kind == _UINT32:
                alignment = self._number("<I")
            elif name == "split.count" and kind == _UINT16:
                files = self._number("<H")
            else:
                self._skip_value(kind, 0)
        if alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment}")
        if files > 1:
            raise _SplitError(files)
        described = [self._described() for _ in range(count)]
        begin = -(-self._file.tell() // alignment) * alignment
        found: dict[str, StoredTensor] = {}
        for name, shape, kind, offset in described:
            if name in found:
                raise ValueError(f"tensor {name!r} is there twice")
            length = bytes_of(name, kind, shape)
            if begin + offset + length > self._size:
                raise ValueError(f"tensor {name!r} reaches beyond its end")
            found[name] = StoredTensor(name, shape, kind, begin + offset, length)
        return tuple(found[name] for name in sorted(found))

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._number("<I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]  # GGUF counts from the innermost
        if not all(0 < each <= self._size * 256 for each in shape):
            raise ValueError(f"tensor {name!r} is of shape {list(shape)}")
        return name, shape, self._number("<I"), self._number("<Q")

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind == _STRING:
            self._skip(self._number("<Q"))
        elif kind == _ARRAY and depth < _DEEPEST:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
                return
            for _ in range(count):
                self._skip_value(inner, depth + 1)
        elif kind in _SIZES:
            self._skip(_SIZES[kind])
        else:
            raise ValueError(f"its metadata has a value of type {kind}")

    def _text(self) -> str:
        return self._bytes(self._number("<Q")).decode()  # a UnicodeDecodeError is a ValueError

    def _number(self, form: str) -> int:
        return int(struct.unpack(form, self._bytes(struct.calcsize(form)))[0])

    def _bytes(self, count: int) -> bytes:
        if count > self._size - self._file.tell():
            raise ValueError("it ends within its header")
        return self._file.read(count)

    def _skip(self, count: int) -> None:
        if count > self._size - self._file.tell():
            raise ValueError("it ends within its header")
        self._file.seek(count, 1)
