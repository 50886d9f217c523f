"""The one family of exceptions that a user's input can cause.

Every message says what is wrong, where, and what to do, in one line. The command line
turns `UsageError` into exit code 2 and every other `SpmError` into exit code 1; anything
else that escapes is a bug and keeps its traceback. Fields and functions stand in backticks, `seed`; the command line
says the option or command in their place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SpmError(Exception):
    """Base of all errors that spm-compress raises on purpose."""


class UsageError(SpmError):
    """The request itself is wrong: an unknown name, a pattern without a match, a bad value."""


class SourceError(SpmError):
    """A model file cannot be read, or holds numbers that cannot be fitted."""


class ArtifactError(SpmError):
    """An artifact is damaged, of a later version, or does not belong to what it is used with."""


class FitError(SpmError):
    """A weight could not be fitted."""


class ExportError(SpmError):
    """The ONNX graph cannot be made, or a layer cannot be found in it."""


class VerificationError(SpmError):
    """Two computations that must agree do not."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, or the error's type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def near_misses(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return `; near misses: a, b` for the names in `known` that resemble `name`, or an empty string."""
    others = [each for each in known if each != name]
    close = difflib.get_close_matches(name, others, n=most, cutoff=0.4)
    return f"; near misses: {', '.join(close)}" if close else ""
