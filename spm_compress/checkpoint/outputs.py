"""Where a command may write: found out before its work, not after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from spm_compress.errors import UsageError

__all__ = ["keep_apart", "require_file_name", "temporary_beside"]


def keep_apart(option: str, output: Path, others: Iterable[Path]) -> None:
    """Raise UsageError if an output would take the place of a file that is read, or of another output.

    Also what `require_file_name` raises.
    """
    require_file_name(option, output)
    for other in others:
        if _place(output) == _place(other):
            raise UsageError(
                f"{option} {output}: would take the place of {other}, which is still needed; choose another name"
            )


def require_file_name(option: str, output: Path) -> None:
    """Raise UsageError unless a file of this name can be written: no folder or device, in a folder that is there."""
    folder = output.parent
    try:
        os.fsencode(output).decode()
        if output.is_dir():
            raise UsageError(f"{option} {output}: is a folder; name the file to write in it")
        if output.exists() and not output.is_file():
            raise UsageError(f"{option} {output}: is no file that could be replaced; choose another name")
        if not folder.is_dir():
            raise UsageError(f"{option} {output}: there is no folder {folder}; make it, or choose another name")
        temporary_beside(output).exists()  # its name is longer
    except UnicodeError as error:
        raise UsageError(f"{option} {output}: is no name in UTF-8, which safetensors wants; choose another") from error
    except OSError as error:
        raise UsageError(f"{option} {output}: cannot be written ({error.strerror}); choose another name") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {output}: the folder {folder} may not be written to; choose another one")


def temporary_beside(path: Path) -> Path:
    """Return the name that a file has until it is whole. Raises UsageError for what is a folder's: `.`, `..`, `/`."""
    if not path.name or path.name == "..":
        raise UsageError(f"{path}: is a folder; name the file to write in it")
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _place(path: Path) -> Path:
    """Return what a path leads to; itself where it leads in a circle, or is no name in this system's encoding."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path.absolute()
