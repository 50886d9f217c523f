"""The structures among which a fit may choose, all of one size."""

from __future__ import annotations

from dataclasses import replace

from spm_compress.fitting.settings import FitSettings
from spm_compress.operator.structure import Mixer, Structure

__all__ = ["forms"]

# Shares of the numbers that `rank=None` gives to the low-rank term, besides all of them.
_SHARES = (0.0, 0.25, 0.5, 0.75)


def forms(settings: FitSettings, out_features: int, in_features: int) -> list[Structure]:
    """Return the structures that settings allow for a weight of this shape, the plainest first.

    Where the mixer or the rank is left open, all take at most as many stored numbers as `settings.stages` stages
    (of the general mixer, if it is open) do without low-rank term.
    """
    if settings.mixer is not None and settings.rank is not None:
        return [settings.structure(out_features, in_features)]
    mixers = (Mixer.GENERAL, Mixer.ROTATION) if settings.mixer is None else (settings.mixer,)
    reference = replace(settings, mixer=mixers[0], rank=settings.rank or 0)
    numbers = reference.stored_structure(out_features, in_features).parameter_count
    most = numbers // (out_features + in_features)
    ranks = sorted({round(share * most) for share in _SHARES}) if settings.rank is None else [settings.rank]
    found = []
    for mixer in mixers:
        for rank in ranks:
            structure = _largest(replace(settings, mixer=mixer, rank=rank), out_features, in_features, numbers)
            if structure is not None:
                found.append(structure)
    if settings.rank is None and most:
        found.append(Structure(mixers[0], in_features, out_features, (), most))
    return found


def _largest(settings: FitSettings, out_features: int, in_features: int, numbers: int) -> Structure | None:
    """Return the structure of most stages that stores at most so many numbers, None where one stage is too many."""

    def fits(stages: int) -> bool:
        stored = replace(settings, stages=stages).stored_structure(out_features, in_features)
        return stored.parameter_count <= numbers

    if not fits(1):
        return None
    low, high = 1, 2
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return replace(settings, stages=low).structure(out_features, in_features)
