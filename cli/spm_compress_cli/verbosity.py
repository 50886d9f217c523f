"""`--quiet` and `--verbose`: how much a command says on stderr."""

from __future__ import annotations

import enum
import functools
import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import click

from spm_compress.errors import SpmError, first_line
from spm_compress_cli.interruption import interruption_told
from spm_compress_cli.streams import say, silent_stderr

__all__ = ["Verbosity", "verbosity_options"]


class Verbosity(enum.IntEnum):
    """Errors alone; progress and messages; also what they are made of."""

    QUIET = 0
    NORMAL = 1
    VERBOSE = 2


def verbosity_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add both options, which the command gets as `verbosity`."""

    @click.option("-q", "--quiet", is_flag=True, help="Nothing but errors on stderr.")
    @click.option("-v", "--verbose", is_flag=True, help="Say more on stderr: versions, every batch, causes of errors.")
    @functools.wraps(command)
    def with_verbosity(*arguments: Any, quiet: bool, verbose: bool, **named: Any) -> None:
        if quiet and verbose:
            raise click.UsageError("--quiet and --verbose exclude each other; give one")
        if quiet:
            with silent_stderr(), interruption_told():
                command(*arguments, verbosity=Verbosity.QUIET, **named)
            return
        if not verbose:
            with interruption_told():
                command(*arguments, verbosity=Verbosity.NORMAL, **named)
            return
        found = (f"{name} {version(name)}" for name in ("spm-compress", "torch", "onnxruntime"))
        say(f"{', '.join(found)}, Python {sys.version.split()[0]}, {sys.platform}")
        try:
            with interruption_told():
                command(*arguments, verbosity=Verbosity.VERBOSE, **named)
        except SpmError as error:
            cause = error.__cause__
            while cause is not None:
                say(f"caused by {type(cause).__name__}: {first_line(cause)}")
                cause = cause.__cause__
            raise

    return with_verbosity
