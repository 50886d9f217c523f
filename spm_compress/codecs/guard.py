"""One guard for every codec: what would harm a layer is not taken, and says so."""

from __future__ import annotations

import math

from spm_compress.codecs.codec import Codec

__all__ = ["cannot_hold", "refusal"]

# A codec may raise the error of a layer by its own factor, and by rounding.
_ROUNDING = 1e-3


def refusal(codec: Codec, before: float, after: float, most_harm: float | None = None) -> str | None:
    """Return why a codec is not taken for a layer, None if it is.

    before, after: relative error of the layer with its numbers in float32, and as the codec has them. most_harm: what
    the layer's form allows, if that is not the codec's own.
    """
    most_harm = codec.most_harm if most_harm is None else most_harm
    if not math.isfinite(after):
        return cannot_hold(codec)
    if math.isinf(most_harm) or after <= most_harm * before + _ROUNDING:
        return None
    return f"{codec.name} would raise the error from {before:.3f} to {after:.3f}; stored in float32"


def cannot_hold(codec: Codec) -> str:
    """Return what is said of numbers that are out of a codec's range."""
    return f"{codec.name} cannot hold the numbers; stored in float32"
