"""Names that torch.compile and the parallel wrappers of torch put before those of a module's own tensors."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator

__all__ = ["bare_names", "unwrapped_names"]

_WRAPPER = re.compile(r"(_orig_mod|module)\.")


def bare_names(name: str) -> Iterator[str]:
    """Yield a name without one wrapper, without two, ...: `_orig_mod.w` and `w` for `module._orig_mod.w`."""
    while match := _WRAPPER.match(name):
        name = name[match.end() :]
        yield name


def unwrapped_names(names: Iterable[str], own: Container[str]) -> dict[str, str]:
    """Return stored name -> name in the module that is filled, of which `own` are the names.

    A wrapper stands before all names of what it wraps; where one lacks it, or is the module's own, nothing is changed.
    """
    stored = list(names)
    if any(name in own or not _WRAPPER.match(name) for name in stored):
        return {name: name for name in stored}
    return {name: _bare(name, own) for name in stored}


def _bare(name: str, own: Container[str]) -> str:
    """Take wrappers off until the module knows the name: it may have a submodule called `module` itself."""
    tried = list(bare_names(name))
    return next((each for each in tried if each in own), tried[-1])
