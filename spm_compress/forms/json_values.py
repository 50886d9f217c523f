"""Numbers of a stranger's manifest."""

from __future__ import annotations

from typing import Any

__all__ = ["whole"]


def whole(value: Any) -> int:
    """Return a whole number. Raises TypeError for what JSON has as another thing: true, 8.0 and "8" are none."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value
