"""`--include`, `--exclude` and `--min-features`: which weights a command is about."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from spm_compress_cli.completion import weight_names

_Command = TypeVar("_Command", bound=Callable[..., Any])


def selection_options(command: _Command) -> _Command:
    """Add the options."""
    command = click.option(
        "--min-features",
        type=click.IntRange(min=1),
        default=32,
        show_default=True,
        help="Leave narrower weights dense.",
    )(command)
    for name, text in (("--exclude", "Leave weights of this name dense"), ("--include", "Only weights of this name")):
        command = click.option(
            name, multiple=True, shell_complete=weight_names, metavar="GLOB", help=f"{text}; repeatable."
        )(command)
    return command
