"""File names for tensors, whose own names may hold anything."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

__all__ = ["file_names"]

_FORBIDDEN = '/\\:*?"<>|'
_LONGEST = 200  # bytes; of 255 that file systems take, with an ending and what a file is called until it is whole


def file_names(names: Sequence[str]) -> list[str]:
    """Return a file name without ending for each of different names; no two are the same, in capitals or not.

    A name that is one already stays; elsewhere what cannot stand in one becomes `_`, and a number follows one that is
    taken.
    """
    safe = {name: _safe(name) for name in names}
    taken: set[str] = set()
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: safe[name] != name):  # those that can stay go first
        found = safe[name]
        tried = itertools.chain([found], (f"{found}_{n}" for n in itertools.count(2)))
        chosen[name] = next(each for each in tried if each.casefold() not in taken)
        taken.add(chosen[name].casefold())
    return [chosen[name] for name in names]


def _safe(name: str) -> str:
    plain = "".join(each if _can_stand(each) else "_" for each in name)
    while len(os.fsencode(plain)) > _LONGEST:
        plain = plain[:-1]
    return plain or "_"


def _can_stand(character: str) -> bool:
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return character.isprintable() and character not in _FORBIDDEN
