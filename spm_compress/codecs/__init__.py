"""Floor 1: how an array of numbers is stored; a new codec is a file here and a line in `codecs`."""

from __future__ import annotations

from collections.abc import Mapping

from spm_compress.codecs.codec import Codec, StoredArray, part_key, straight_through
from spm_compress.codecs.floats import FLOAT16, FLOAT32
from spm_compress.codecs.guard import cannot_hold, refusal

__all__ = [
    "FLOAT16",
    "FLOAT32",
    "Codec",
    "StoredArray",
    "cannot_hold",
    "codecs",
    "part_key",
    "read_codec",
    "refusal",
    "straight_through",
]


def codecs() -> Mapping[str, Codec]:
    """Return every codec there is, by its name."""
    found: tuple[Codec, ...] = (
        FLOAT32,
        FLOAT16,
    )
    return {codec.name: codec for codec in found}


def read_codec(name: str) -> Codec:
    """Return the codec of a name. Raises ValueError if there is none."""
    found = codecs()
    if name not in found:
        raise ValueError(f"codec {name!r} is none of {', '.join(found)}")
    return found[name]
