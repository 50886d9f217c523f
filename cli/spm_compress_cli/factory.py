"""`--factory`: a model that a function of the user builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def factory_option(command: _Command) -> _Command:
    """Add the option; the code that it names runs, because the user named it."""
    return click.option(
        "--factory", metavar="MODULE:FUNCTION", help="Builds the model: returns an nn.Module, or one and its inputs."
    )(command)
