"""Sizes in words."""

from __future__ import annotations

__all__ = ["bytes_text"]


def bytes_text(count: float) -> str:
    """Return a number of bytes in the decimal unit that suits it: `1.22 MB`, `512 B`."""
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{count:.0f} B" if unit == "B" else f"{size:.2f} {unit}"
