"""Names that nothing has yet."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container

__all__ = ["free_name"]


def free_name(wanted: str, taken: Container[str] | Callable[[str], bool]) -> str:
    """Return the name, or NAME.2, NAME.3, ... if it is taken. taken: the names that are, or what says so of one."""
    is_taken = taken if callable(taken) else taken.__contains__
    candidates = itertools.chain([wanted], (f"{wanted}.{i}" for i in itertools.count(2)))
    return next(name for name in candidates if not is_taken(name))
