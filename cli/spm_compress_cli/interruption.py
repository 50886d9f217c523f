"""What is left of a command that is interrupted by Ctrl-C: said as it is, command by command."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from spm_compress.errors import SpmError

__all__ = ["if_interrupted", "interruption_told", "written_since"]

_Told = Callable[[], str | None]
_MOST = 3


def if_interrupted(told: _Told) -> None:
    """Say from now on what `told` returns, or that nothing was written where it returns None."""
    click.get_current_context().meta[__name__] = told


@contextmanager
def interruption_told() -> Iterator[None]:
    """Raise SpmError in the place of KeyboardInterrupt where the command in it has something to say."""
    try:
        yield
    except (click.Abort, KeyboardInterrupt) as error:
        told: _Told = click.get_current_context().meta.get(__name__, lambda: None)
        what = told()
        if what is None:
            raise
        raise SpmError(f"interrupted{what}") from error


def written_since(outputs: Sequence[Path | None], *, otherwise: str | None = None) -> _Told:
    """Return what names those of the outputs, files or folders, that were written after this call."""
    before = _stamps(outputs)

    def told() -> str | None:
        written = [str(path) for path, stamp in _stamps(outputs).items() if before.get(path) != stamp]
        if not written:
            return otherwise
        more = f" and {len(written) - _MOST} more" if len(written) > _MOST else ""
        return f"; what was written by then is whole: {', '.join(written[:_MOST])}{more}"

    return told


def _stamps(outputs: Sequence[Path | None]) -> dict[Path, Any]:
    files = [file for path in outputs if path for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    found = {file: file.stat() for file in files if file.is_file() and not file.name.endswith(".tmp")}
    return {file: (stat.st_ino, stat.st_mtime_ns) for file, stat in found.items()}
