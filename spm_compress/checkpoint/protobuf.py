"""The outermost fields of a protobuf message on disk, without reading what is in them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

__all__ = ["Field", "fields_of"]

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
# A frozen graph has a field a node; a file with more is none that is looked for.
_MOST = 200_000


@dataclass(frozen=True)
class Field:
    """A field: its number, whether it holds bytes; value: of a number, or the length of the bytes."""

    number: int
    is_bytes: bool
    value: int
    begins_with_text: bool = False  # bytes that are a message themselves, of which field 1 is a string


def fields_of(path: Path) -> list[Field] | None:
    """Return the fields of a message that ends where the file ends, None if the file is none."""
    size = path.stat().st_size
    found: list[Field] = []
    with path.open("rb") as file:
        at = 0
        while at < size:
            field, at = _field(file, at)
            if field is None or at > size or len(found) == _MOST:
                return None
            found.append(field)
    return found or None


def _field(file: BinaryIO, at: int) -> tuple[Field | None, int]:
    """Return the field at an offset, None if there is none, and where the next one stands."""
    file.seek(at)
    head = file.read(24)
    key, used = _varint(head)
    number, wire = key >> 3, key & 7
    if not used or not 0 < number < 1 << 29 or wire not in (_VARINT, _EIGHT, _BYTES, _FOUR):
        return None, at
    if wire in (_EIGHT, _FOUR):
        return Field(number, False, 0), at + used + (8 if wire == _EIGHT else 4)
    value, more = _varint(head[used:])
    if not more:
        return None, at
    begin = used + more
    if wire == _VARINT:
        return Field(number, False, value), at + begin
    begins = len(head) > begin + 2 and head[begin] == (1 << 3 | _BYTES) and chr(head[begin + 2]).isprintable()
    return Field(number, True, value, begins), at + begin + value


def _varint(data: bytes) -> tuple[int, int]:
    """Return a number and how many bytes it takes, 0 if it does not end."""
    value = 0
    for i, byte in enumerate(data[:10]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value, i + 1
    return 0, 0
