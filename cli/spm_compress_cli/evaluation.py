"""`--eval`, `--min-score` and `--max-drop`: the user's own measure of a model, printed and as a gate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from spm_compress.compress import Gate

_Command = TypeVar("_Command", bound=Callable[..., Any])


def evaluation_options(command: _Command) -> _Command:
    """Add the options, from which `gate_of` makes a gate."""
    options = (
        click.option("--max-drop", type=float, metavar="D", help="Fail if it is more than this below the original's."),
        click.option("--min-score", type=float, metavar="S", help="Fail if the compressed model's score is lower."),
        click.option(
            "--eval",
            "evaluate",
            metavar="MODULE:FUNCTION",
            help="Called with the model; returns a number, higher is better.",
        ),
    )
    for option in options:
        command = option(command)
    return command


def gate_of(evaluate: str | None, min_score: float | None, max_drop: float | None) -> Gate | None:
    """Import the user's function; the one place where their code runs, because they named it."""
    if evaluate is None:
        if min_score is not None or max_drop is not None:
            raise click.UsageError("--min-score and --max-drop judge a score; say how to get it with --eval")
        return None
    from spm_compress.checkpoint import import_function
    from spm_compress.compress import Gate

    return Gate(evaluate, import_function("--eval", evaluate), min_score, max_drop)
