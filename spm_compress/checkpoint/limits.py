"""How much a stranger's file may ask of the memory."""

from __future__ import annotations

import os
from pathlib import Path

from spm_compress.errors import SourceError, UsageError

__all__ = ["require_room"]

_VARIABLE = "SPM_COMPRESS_MAX_GIB"
_DEFAULT = 64.0


def require_room(path: Path, what: str, size: int) -> None:
    """Raise SourceError if something of `size` bytes, once read, is above the limit; the variable raises that.

    Raises UsageError for a limit that is no number.
    """
    text = os.environ.get(_VARIABLE, str(_DEFAULT))
    try:
        most = float(text) * 2**30
    except ValueError as error:
        raise UsageError(f"{_VARIABLE}={text}: is not a number of GiB") from error
    if size > most:
        raise SourceError(
            f"{path}: {what} would take {size / 2**30:,.1f} GiB; if that is right, allow it with "
            f"{_VARIABLE}={size / 2**30 + 1:.0f}"
        )
