"""Where what took time is kept, in the working directory, for the next command."""

from pathlib import Path

__all__ = ["CACHE"]

CACHE = Path(".spm-compress")
