"""Floor 1: how an array of numbers is stored; a new codec is a file here and a line in `codecs`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace

from spm_compress.codecs.angle import Angle
from spm_compress.codecs.codec import Codec, StoredArray, part_key
from spm_compress.codecs.floats import FLOAT16, FLOAT32, Float
from spm_compress.codecs.grid import BLOCKS, Grid, integer, sign, ternary
from spm_compress.codecs.guard import cannot_hold, refusal
from spm_compress.codecs.scales import SCALES
from spm_compress.codecs.straight_through import Rounding, straight_through
from spm_compress.errors import UsageError

__all__ = [
    "BLOCKS",
    "FLOAT16",
    "FLOAT32",
    "SCALES",
    "Angle",
    "Codec",
    "Float",
    "Grid",
    "Rounding",
    "StoredArray",
    "bits_text",
    "cannot_hold",
    "codecs",
    "in_words",
    "integer",
    "parse_bits",
    "part_key",
    "read_codec",
    "refusal",
    "sign",
    "straight_through",
    "ternary",
    "with_shared",
]


_SHARED: tuple[str | int, ...] = ("row", "column", "matrix", *BLOCKS)


# What one asks for, and the codec: a scale a row where there is one.
_BITS: Mapping[str, Codec] = {
    **{"32": FLOAT32, "16": FLOAT16},
    **{str(bits): integer(bits) for bits in range(8, 1, -1)},
    **{"1.6": ternary(), "1": sign()},
}


def with_shared(codec: Codec, shared: str | int) -> Codec:
    """Return a codec whose scales are shared by another part of an array, where it has scales."""
    return replace(codec, shared=shared) if isinstance(codec, Grid) else codec


def parse_bits(text: str, field: str = "bits") -> Codec:
    """Return the codec of 'BITS' or 'BITS/BLOCK': 32, 16, 8 to 2, 1.6 (ternary) or 1, a scale a row or a block of it.

    Raises UsageError, which names the field, for anything else.
    """
    bits, slash, block = text.strip().partition("/")
    if bits not in _BITS:
        raise UsageError(f"`{field}` {text!r}: a number takes 32, 16, 8 to 2, 1.6 or 1")
    if not slash:
        return _BITS[bits]
    if block not in map(str, BLOCKS) or not isinstance(_BITS[bits], Grid):
        raise UsageError(
            f"`{field}` {text!r}: of 8 bits or less {', '.join(map(str, BLOCKS))} numbers may share a scale"
        )
    return with_shared(_BITS[bits], int(block))


def bits_text(codec: Codec) -> str:
    """Return the text that `parse_bits` takes for a codec that one may ask for."""
    texts = [*_BITS, *(f"{bits}/{block}" for bits in _BITS for block in BLOCKS if isinstance(_BITS[bits], Grid))]
    return next(text for text in texts if parse_bits(text) == codec)


@functools.cache
def codecs() -> Mapping[str, Codec]:
    """Return every codec there is, by its name."""
    found: tuple[Codec, ...] = (
        FLOAT32,
        FLOAT16,
        SCALES,
        *(Angle(bits, whole) for bits in range(4, 9) for whole in (False, True)),
        *(with_shared(codec, shared) for codec in _BITS.values() if isinstance(codec, Grid) for shared in _SHARED),
    )
    return {codec.name: codec for codec in found}


def in_words(codec: Codec) -> str:
    """Return a codec as people say it: '4 bits', '4/32 bits' with blocks, '1.6 bits', 'float16'."""
    if not isinstance(codec, Grid):
        return codec.name
    return f"{bits_text(codec if isinstance(codec.shared, int) else with_shared(codec, 'row'))} bits"


def read_codec(name: str) -> Codec:
    """Return the codec of a name. Raises ValueError if there is none."""
    found = codecs()
    if name not in found:
        raise ValueError(f"codec {name!r} is none of {', '.join(found)}")
    return found[name]
