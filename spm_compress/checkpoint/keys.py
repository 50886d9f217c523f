"""Names under which an artifact stores tensors: the user's own, wherever a safetensors file can have them so.

1. A kept tensor is stored under its own name, unless safetensors forbids it.
2. A fitted weight W has its arrays below a stem, `W.spm`, unless one of their names is a kept tensor's or another's.
3. Elsewhere the manifest says which was taken instead: the first free one of `NAME_1`, `NAME_2`, ...
"""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["BIAS_CORRECTION", "Keys", "choose_keys", "is_storable", "usual_stem"]

BIAS_CORRECTION = "bias_correction"  # stands behind a layer's stem, beside its arrays
_RESERVED = "__metadata__"  # safetensors' own, for what is no tensor


@dataclass(frozen=True)
class Keys:
    """kept: name of a tensor -> its key; stems: name of a fitted weight -> what its arrays' keys begin with."""

    kept: Mapping[str, str]
    stems: Mapping[str, str]


def choose_keys(kept: Sequence[str], layers: Iterable[tuple[str, Sequence[str]]]) -> Keys:
    """Return keys that never meet.

    kept: names; layers: names of the fitted weights, in their order, and of all that may stand behind their stems, also
    of what a reader only looks for.
    """
    taken = {name for name in kept if is_storable(name)}
    keys = {name: name for name in taken}
    for name in kept:
        if name not in keys:
            keys[name] = _first_free(_unicode(name), ("",), {*taken, _RESERVED})
            taken.add(keys[name])
    stems: dict[str, str] = {}
    for name, behind in layers:
        ends = [f".{each}" for each in behind]
        stems[name] = _first_free(usual_stem(name), ends, taken)
        taken.update(stems[name] + end for end in ends)
    return Keys(keys, stems)


def is_storable(name: str) -> bool:
    """Return whether safetensors can have a tensor of this name: valid Unicode that is not its own word."""
    return name != _RESERVED and _unicode(name) == name


def usual_stem(name: str) -> str:
    """Return what the keys of a fitted weight begin with where nothing stands in the way."""
    return f"{_unicode(name)}.spm"


def _unicode(name: str) -> str:
    """Return the name with question marks for lone surrogates, which a torch checkpoint can have in a name."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _first_free(wanted: str, ends: Iterable[str], taken: Container[str]) -> str:
    """Return the first of NAME, NAME_1, NAME_2, ... that meets nothing taken, whatever follows it."""
    names = itertools.chain([wanted], (f"{wanted}_{n}" for n in itertools.count(1)))
    return next(name for name in names if not any(name + end in taken for end in ends))
